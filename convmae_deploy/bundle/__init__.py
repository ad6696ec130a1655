"""The bundle: its manifest, its files, and what a graph in it must look like."""
