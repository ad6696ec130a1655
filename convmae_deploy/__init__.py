"""ConvMAE (arXiv 2205.03892) from pixels to production: the library behind training, export and serving."""

import os

__version__ = "0.1.0"

# ONNX Runtime reports its use to its maker unless this is set before it is first imported. So it stands here, before
# any module of the library and, as each program's package imports this one first, of the programs. Processes that they
# start inherit it. What the user has set, "0" too, stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
