"""Initial weights for a training program, from our checkpoints or straight from the authors' files."""

from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from convmae_deploy.checkpoints.native import load_encoder_state
from convmae_deploy.checkpoints.original import import_original
from convmae_deploy.models.convmae import ConvMAEConfig


def load_initial_encoder(path: Path, image_size: tuple[int, int]) -> tuple[ConvMAEConfig, dict[str, Tensor]]:
    """The configuration and weights (keys without prefix) of a pretrained encoder, resized to `image_size`.

    Args:
        path: a run folder or checkpoint of ours, or a `.pth` file of the authors.
        image_size: (height, width) in pixels to resize the position embedding for.

    Raises:
        ConvMAEError: neither, or damaged.
    """
    if not path.is_file():
        return load_encoder_state(path, image_size)
    with TemporaryDirectory() as directory:
        imported = Path(directory) / "imported"
        import_original(path, imported)
        return load_encoder_state(imported, image_size)
