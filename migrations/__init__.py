"""Alembic migrations of the schema `srm`. script.py.mako has the rules for new ones."""
