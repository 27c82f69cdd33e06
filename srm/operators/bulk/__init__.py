"""Import and export of accounts, devices, entitlements, contents and products, in bulk."""
