"""Who asks, and the service that says what an account may watch."""
