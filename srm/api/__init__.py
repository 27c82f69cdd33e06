"""HTTP: what all versions of the API share."""
