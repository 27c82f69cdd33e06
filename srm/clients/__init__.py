"""Authentication of clients, and the client of the entitlement service."""
