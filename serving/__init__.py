"""The HTTP server: one BentoML service around an ASGI application of our own."""

import os

import convmae_deploy  # noqa: F401  # before any module here imports a runtime: it keeps those from reporting their use

# BentoML reports its use to its maker unless this is set. What the user has set, "false" too, stays.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
