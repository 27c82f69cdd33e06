"""The operator's side: keys, provisioning, sessions, the change log."""
