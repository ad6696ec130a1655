"""The page in the browser, and how its files are sent."""
