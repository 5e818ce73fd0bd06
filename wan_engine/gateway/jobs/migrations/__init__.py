"""The steps that bring a database to the tables of `database.py`; alembic runs them at start."""
