"""Version 1 of the client API."""
