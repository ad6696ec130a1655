"""First weights of encoders, where training begins without pretrained ones."""

from collections.abc import Iterator

from torch import nn

from convmae_deploy.models.convmae import ConvBlock


def pointwise_layers(model: nn.Module) -> Iterator[nn.Linear]:
    """The Linears of convolution blocks, which the authors hold as 1x1 convolutions."""
    for block in model.modules():
        if isinstance(block, ConvBlock):
            yield from (layer for layer in block.modules() if isinstance(layer, nn.Linear))


def initialise_scratch(encoder: nn.Module) -> None:
    """The weights that training begins with where nothing is pretrained, as in the authors' classifier.

    What they hold as 1x1 convolutions keeps PyTorch's default for those, which is that of a Linear, and a position
    embedding that is trained begins as a truncated normal of 0.02. Pretraining begins otherwise.
    """
    for layer in pointwise_layers(encoder):
        layer.reset_parameters()
    positions = encoder.get_parameter("pos_embed")
    if positions.requires_grad:  # that of videos is not
        nn.init.trunc_normal_(positions, std=0.02)
