"""ConvMAE (arXiv 2205.03892) from pixels to production: the library behind training, export and serving."""

__version__ = "0.1.0"
