"""The client API, v1."""
