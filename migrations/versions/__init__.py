"""One change each, in order of their numbers."""
