"""Timing the ways to run a bundle against one another."""
