"""Alembic migrations of the schema `srm`; see script.py.mako for their rules."""
