"""Coverage-guided search for bytes that break a reader: `python -m tests.fuzz`, see README.md in this folder."""
