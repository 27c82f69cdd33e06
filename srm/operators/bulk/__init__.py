"""Import and export by the million."""
