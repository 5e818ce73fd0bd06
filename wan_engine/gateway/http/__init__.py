"""The HTTP server below the doors: connections, bodies, callers, health."""
