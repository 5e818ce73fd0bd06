"""Migrates an older database to the tables of `database.py`. alembic runs the steps at start."""
