"""Accuracy over a split against a literal count."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from convmae_deploy.bundle.preprocessing import Preprocessing, standard_clips
from convmae_deploy.data.photo_datasets import EvaluationPhotos
from convmae_deploy.data.photo_folder import read_photo_folder
from convmae_deploy.data.unreadable import Unreadable
from convmae_deploy.data.video_datasets import EvaluationVideos
from convmae_deploy.data.video_folder import VideoFolder
from convmae_deploy.engine.classification import Accuracy, AverageOfViews
from convmae_deploy.engine.evaluation import evaluate
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.clips import ClipViews, average_views, read_clips
from tests.photo_folders import make_photo_folder
from tests.video_files import make_video


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
    accuracy = evaluate(model, photos, Accuracy(), Accelerator(), batch_size=4, workers=0)

    samples = [sample for index in range(len(photos)) if not isinstance(sample := photos[index], Unreadable)]
    with torch.no_grad():
        logits = [model(image[None])[0] for image, _ in samples]
    ranks = [int((row > row[label]).sum()) for row, (_, label) in zip(logits, samples, strict=True)]
    losses = [float(row.logsumexp(0) - row[label]) for row, (_, label) in zip(logits, samples, strict=True)]
    assert (accuracy.images, accuracy.unreadable) == (20, 1)
    assert [(Path(entry.file).parent.parent.name, bool(entry.reason)) for entry in accuracy.files] == [("val", True)]
    assert accuracy.scores["top1"] == pytest.approx(100 * sum(rank < 1 for rank in ranks) / 20)
    assert accuracy.scores["top5"] == pytest.approx(100 * sum(rank < 5 for rank in ranks) / 20)
    assert accuracy.scores["loss"] == pytest.approx(sum(losses) / 20, rel=1e-5)
    assert model.training


def test_a_batch_without_one_readable_photo_does_not_end_the_evaluation(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, per_class=2)
    (tmp_path / "val" / "red" / "1.png").write_bytes(b"damaged")
    photos = EvaluationPhotos(read_photo_folder(tmp_path, "val"), Preprocessing(resize=(36, 36), crop=(32, 32)))
    accuracy = evaluate(Projection(), photos, Accuracy(), Accelerator(), batch_size=1, workers=0)
    assert (accuracy.images, accuracy.unreadable) == (3, 1)


def test_a_split_without_one_readable_photo_is_refused(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, classes=("a",), per_class=1)
    (tmp_path / "val" / "a" / "0.png").write_bytes(b"damaged")
    photos = EvaluationPhotos(read_photo_folder(tmp_path, "val"), Preprocessing(resize=(36, 36), crop=(32, 32)))
    with pytest.raises(ConvMAEError, match="none of the 1 validation files"):
        evaluate(Projection(), photos, Accuracy(), Accelerator(), batch_size=4, workers=0)


class MiddlePixel(nn.Module):
    """Logits that depend strongly on which frames and which crop of a video (B, 3, T, H, W) are seen."""

    def forward(self, clips: Tensor) -> Tensor:
        seen = clips[:, 0, 0, 4, 4]
        return torch.stack([seen, -seen, seen * seen], dim=1) * 3


def test_views_of_a_video_count_by_the_mean_of_their_probabilities(tmp_path: Path) -> None:
    videos = tuple(tmp_path / f"{index}.mp4" for index in range(3))
    for index, video in enumerate(videos):
        video.write_bytes(make_video(frames=10 + 5 * index, size=(48, 96)))
    videos[1].write_bytes(b"damaged")
    folder = VideoFolder(videos=videos, labels=(0, 1, 2), classes=("a", "b", "c"))
    spec, views = standard_clips((32, 32), frames=2, stride=2), ClipViews(temporal=2, spatial=3)
    model = AverageOfViews(MiddlePixel())
    accuracy = evaluate(
        model, EvaluationVideos(folder, spec, views), Accuracy(), Accelerator(), batch_size=2, workers=0
    )
    losses = []
    for video, label in ((videos[0], 0), (videos[2], 2)):
        logits = MiddlePixel()(torch.from_numpy(read_clips(video, spec, views=views))).numpy()
        assert len(np.unique(logits[:, 0])) > 2  # the views differ
        losses.append(-np.log(average_views(logits)[label]))
    assert (accuracy.images, accuracy.unreadable) == (2, 1)
    assert accuracy.scores["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-5)
