"""The `srm` command."""
