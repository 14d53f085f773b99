"""The edge's memory in SQLite or PostgreSQL, through SQLAlchemy."""
