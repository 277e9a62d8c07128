"""Networks in files: ours, and those of other frameworks, read as data."""
