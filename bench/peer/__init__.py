"""The comparison with FreeRADIUS."""
