"""Top-1 and top-5 accuracy of a classifier over a labelled split, exact on any number of processes."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from convmae_deploy.data.photo_datasets import EvaluationPhotos, collate_readable
from convmae_deploy.data.video_datasets import EvaluationVideos
from convmae_deploy.data.workers import leave_signals_to_parent
from convmae_deploy.errors import ConvMAEError


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Result of an evaluation."""

    top1: float  # percent
    top5: float  # percent; of all classes where there are fewer than five
    loss: float  # mean cross-entropy, no smoothing
    images: int  # or videos
    unreadable: int  # files that could not be decoded; not counted in the rest


class AverageOfViews(nn.Module):
    """A video classifier over several views: the mean of their probabilities, as `runtime.clips.average_views`.

    Input (B, V, 3, T, H, W); output (B, K), the logarithms of the means, which are logits of the same probabilities.
    The views are run one after the other, so they need no more memory than one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: Tensor) -> Tensor:
        """(B, V, 3, T, H, W) to (B, K)."""
        views = [F.log_softmax(self.model(view).float(), dim=1) for view in clips.unbind(dim=1)]  # V of (B, K)
        return torch.stack(views).logsumexp(dim=0) - math.log(len(views))


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    photos: EvaluationPhotos | EvaluationVideos,
    accelerator: Accelerator,
    *,
    batch_size: int,
    workers: int,
) -> Accuracy:
    """Runs the model over all photos or videos; each process takes every world_size-th one.

    Args:
        model: maps (B, 3, H, W) to logits (B, K), or for videos is an `AverageOfViews`; left in the mode it was in.
        photos: the split.
        accelerator: says which process this is and adds the counts up.
        batch_size: images or videos at once.
        workers: decoding processes.

    Raises:
        ConvMAEError: no photo could be read.
    """
    was_training = model.training
    model.eval()
    own = Subset(photos, range(accelerator.process_index, len(photos), accelerator.num_processes))
    loader = DataLoader(
        own, batch_size, num_workers=workers, collate_fn=collate_readable, worker_init_fn=leave_signals_to_parent
    )
    counts = torch.zeros(5, dtype=torch.float64)  # top-1, top-5, loss, images, unreadable
    for images, labels, unreadable in loader:
        counts[4] += unreadable
        if not len(images):
            continue
        labels = labels.to(accelerator.device)
        with accelerator.autocast():
            logits = model(images.to(accelerator.device))
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5)
        hits = best == labels[:, None]
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        batch = [hits[:, 0].sum(), hits.sum(), loss, len(labels)]
        counts[:4] += torch.tensor([float(value) for value in batch], dtype=torch.float64)
    model.train(was_training)

    top1, top5, loss_sum, images_seen, unreadable_seen = accelerator.reduce(
        counts.to(accelerator.device), "sum"
    ).tolist()
    if not images_seen:
        raise ConvMAEError(f"none of the {len(photos)} validation files could be decoded; check the data folder")
    return Accuracy(
        top1=100 * top1 / images_seen,
        top5=100 * top5 / images_seen,
        loss=loss_sum / images_seen,
        images=int(images_seen),
        unreadable=int(unreadable_seen),
    )
