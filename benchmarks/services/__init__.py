"""The processes that a benchmark measures, and local stand-ins for what is around them. Tests use
them too."""
