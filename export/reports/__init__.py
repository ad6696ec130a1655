"""What is told of a verification: tables, an HTML page, a reproducer."""
