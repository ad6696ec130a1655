"""What is reported of a verification: tables, plots, an HTML page."""
