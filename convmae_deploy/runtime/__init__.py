"""Running exported bundles: everything a server or a laptop needs, and no torch."""
