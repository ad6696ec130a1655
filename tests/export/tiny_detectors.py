"""A detector that is quick to trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.detector import ConvMAEDetector, DetectorConfig, build_detector

SIZE = (64, 128)
ENCODER = ConvMAEConfig(embed_dims=(8, 16, 32), depths=(1, 1, 2), mlp_ratios=(2, 2, 2), num_heads=2, image_size=SIZE)
DETECTOR = DetectorConfig(channels=16, fc_width=32, norm="layer")


def tiny_detector(num_classes: int = 5) -> ConvMAEDetector:
    """A detector in evaluation mode whose scores differ by much more than rounding."""
    torch.manual_seed(0)
    model = build_detector(ENCODER, DETECTOR, num_classes=num_classes).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@contextmanager
def little_suppression() -> Iterator[None]:
    """Detectors sort out 300 proposals of a level, not 1000, in 16 rounds, of which tiny ones need 12."""
    most = {"training": 300, "testing": 300}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PROPOSAL_ROUNDS", "DETECTION_ROUNDS"):
            patch.setattr(f"export.graphs.static_detector.{name}", 16)
        for name in ("BEFORE_SUPPRESSION", "AFTER_SUPPRESSION"):
            patch.setattr(f"convmae_deploy.models.proposals.{name}", most)
        yield
