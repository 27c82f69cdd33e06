"""HTTP: the versions of the API, and the parts that all versions share."""
