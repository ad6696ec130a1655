"""This project's own claims, measured."""

import convmae_deploy  # noqa: F401  # before any module here imports a runtime: it keeps those from reporting their use
