"""How the database is reached: connections, the schema, the embedded server."""
