"""The HTTP server: one BentoML service around an ASGI application of our own."""

import os

# Requests run side by side, a core each: NumPy's own threads would wait for cores. It reads this when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import convmae_deploy  # noqa: E402, F401  # before any module here imports a runtime: it keeps those from reporting use

# BentoML reports its use to its maker unless this is set. What the user has set, "false" too, stays.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
