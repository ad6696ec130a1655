"""Tiny bundles with a kit."""

from pathlib import Path

from convmae_deploy.backends.runtimes import start_backend
from convmae_deploy.tasks import load_bundle
from export.conformance_kit import add_kit


def with_kit(bundle: Path) -> Path:
    """The bundle, which its own graph is right for."""
    loaded = load_bundle(bundle)
    backend = start_backend(loaded, device="cpu")
    add_kit(bundle, lambda images: backend.run(images, tuple(loaded.manifest.outputs)))
    return bundle
