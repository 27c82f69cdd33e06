"""Version 1 of the API, for clients and for operators."""
