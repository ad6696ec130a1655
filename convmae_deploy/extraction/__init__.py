"""Features of many files."""
