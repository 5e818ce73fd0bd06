"""Contains one file per step, named by its number. A released step never changes."""
