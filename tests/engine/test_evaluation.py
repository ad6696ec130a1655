"""Accuracy over a split against a literal count."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from convmae_deploy.data.photo_datasets import EvaluationPhotos
from convmae_deploy.data.photo_folder import read_photo_folder
from convmae_deploy.engine.evaluation import evaluate
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.runtime.manifest import Preprocessing
from tests.photo_folders import make_photo_folder


class Projection(nn.Module):
    """Logits that depend on the photo, for seven classes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 7)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.mean(dim=(2, 3)))
        return logits


def test_accuracy_and_loss_equal_a_count_photo_by_photo(tmp_path: Path) -> None:
    classes = tuple("abcdefg")
    make_photo_folder(tmp_path, classes=classes, per_class=3)
    (tmp_path / "val" / "c" / "1.png").write_bytes(b"damaged")
    spec = Preprocessing(resize=(36, 36), crop=(32, 32))
    photos = EvaluationPhotos(read_photo_folder(tmp_path, "val"), spec)
    torch.manual_seed(0)
    model = Projection().train()
    accuracy = evaluate(model, photos, Accelerator(), batch_size=4, workers=0)

    samples = [sample for index in range(len(photos)) if (sample := photos[index]) is not None]
    with torch.no_grad():
        logits = [model(image[None])[0] for image, _ in samples]
    ranks = [int((row > row[label]).sum()) for row, (_, label) in zip(logits, samples, strict=True)]
    losses = [float(row.logsumexp(0) - row[label]) for row, (_, label) in zip(logits, samples, strict=True)]
    assert (accuracy.images, accuracy.unreadable) == (20, 1)
    assert accuracy.top1 == pytest.approx(100 * sum(rank < 1 for rank in ranks) / 20)
    assert accuracy.top5 == pytest.approx(100 * sum(rank < 5 for rank in ranks) / 20)
    assert accuracy.loss == pytest.approx(sum(losses) / 20, rel=1e-5)
    assert model.training


def test_a_batch_without_one_readable_photo_does_not_end_the_evaluation(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, per_class=2)
    (tmp_path / "val" / "red" / "1.png").write_bytes(b"damaged")
    photos = EvaluationPhotos(read_photo_folder(tmp_path, "val"), Preprocessing(resize=(36, 36), crop=(32, 32)))
    accuracy = evaluate(Projection(), photos, Accelerator(), batch_size=1, workers=0)
    assert (accuracy.images, accuracy.unreadable) == (3, 1)


def test_a_split_without_one_readable_photo_is_refused(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, classes=("a",), per_class=1)
    (tmp_path / "val" / "a" / "0.png").write_bytes(b"damaged")
    photos = EvaluationPhotos(read_photo_folder(tmp_path, "val"), Preprocessing(resize=(36, 36), crop=(32, 32)))
    with pytest.raises(ConvMAEError, match="none of the 1 validation photos"):
        evaluate(Projection(), photos, Accelerator(), batch_size=4, workers=0)
