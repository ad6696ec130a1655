"""Initial weights for a training program, from our checkpoints or straight from the authors' files."""

from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from convmae_deploy.checkpoints.native import load_encoder_state
from convmae_deploy.checkpoints.original import import_original
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import ConvMAEConfig


def load_initial_encoder(path: Path, architecture: ConvMAEConfig) -> tuple[dict[str, Tensor], list[str]]:
    """The weights (keys without prefix) of a pretrained encoder, resized to fit, and what there is to tell of it.

    Args:
        path: a run folder or checkpoint of ours, or a `.pth` file of the authors.
        architecture: what the encoder must be; its image size is the one to resize for, and its number of heads is
            taken on trust for a `.pth` file, which does not hold that number.

    Raises:
        ConvMAEError: not such an encoder, or damaged.
    """
    report: list[str] = []
    if not path.is_file():
        found, state = load_encoder_state(path, architecture.image_size)
    else:
        with TemporaryDirectory() as directory:
            imported = Path(directory) / "imported"
            report = import_original(path, imported, num_heads=architecture.num_heads).lines()[:-1]  # not where to
            found, state = load_encoder_state(imported, architecture.image_size)
    if found != architecture:
        raise ConvMAEError(f"initial weights must be an encoder of {architecture}; {path} holds {found}")
    return state, report
