"""Access to PostgreSQL: connections, circuit breaker, tables, migrations, the embedded server."""
