"""Datasets and transforms of the training programs."""
