import convmae_deploy  # noqa: F401  # before any test imports a runtime: it keeps those from reporting their use
