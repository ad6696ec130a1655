"""COCO's metrics of a detector over a split, in the photos' own pixels as it is served, on any number of processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from convmae_deploy.bundle.manifest import Letterbox
from convmae_deploy.data.coco import CocoSplit
from convmae_deploy.data.detection_datasets import EvaluationDetections, collate_detections
from convmae_deploy.data.sources import loaded
from convmae_deploy.data.workers import leave_signals_to_parent
from convmae_deploy.engine.coco_evaluation import IOU_TYPES, Kind, coco_metrics
from convmae_deploy.engine.epoch_log import Validation
from convmae_deploy.engine.training_run import share_statistics
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.detection import coco_result, find_detections
from convmae_deploy.tasks.objects import Detection


@dataclass(frozen=True, kw_only=True)
class DetectionResult:
    """Result of an evaluation."""

    metrics: Mapping[Kind, Mapping[str, float]]  # of boxes and of masks, the twelve numbers in [0, 1] of `coco_metrics`
    images: int
    unreadable: int  # photos that could not be decoded; not counted in the rest

    def validation(self) -> Validation:
        """What there is to tell of it; `val_mask_ap` is the number to choose by."""
        told = ", ".join(
            f"{kind} AP {100 * numbers['ap']:.2f} % (AP50 {100 * numbers['ap50']:.2f} %)"
            for kind, numbers in self.metrics.items()
        )
        scores = {
            f"val_{kind}_{name}": 100 * value
            for kind, numbers in self.metrics.items()
            for name, value in numbers.items()
        }
        return Validation(
            scores=scores | {"unreadable_val": self.unreadable}, told=told, summary=f"{told} on {self.images} photos"
        )


def evaluate_detector(
    model: nn.Module, photos: EvaluationDetections, accelerator: Accelerator, *, batch_size: int, workers: int
) -> DetectionResult:
    """Detects on all photos; each process takes every world_size-th one.

    Args:
        model: maps (B, 3, H, W) to detections (`models.detector`); left in the mode it was in.
        photos: the split.
        accelerator: says which process this is and brings the detections together.
        batch_size: photos at once.
        workers: decoding processes.

    Raises:
        ConvMAEError: no photo could be read, or those that could hold no object.
    """
    was_training = model.training
    model.eval()
    share_statistics(model, accelerator)
    split = photos.split
    own = Subset(photos, range(accelerator.process_index, len(photos), accelerator.num_processes))
    loader = DataLoader(
        own, batch_size, num_workers=workers, collate_fn=collate_detections, worker_init_fn=leave_signals_to_parent
    )
    results: list[dict[str, object]] = []
    seen: list[int] = []
    for images, indices, _ in loaded(loader):
        seen += indices
        for index, found in zip(indices, detect(model, images, accelerator), strict=True):
            detections = in_photo(found, split, index, photos.preprocessing)
            results += [coco_result(one, split.photos[index].id, split.category_ids[one.index]) for one in detections]
    model.train(was_training)
    seen = sorted(gather_object(seen))
    if not seen:
        raise ConvMAEError(f"none of the {len(photos)} validation photos could be decoded; check the data folder")
    metrics = _shared_metrics(split.subset(seen), results, accelerator)
    if not all("ap" in numbers for numbers in metrics.values()):
        raise ConvMAEError(
            f"none of the {len(seen)} validation photos holds an object to be found; check the annotations"
        )
    return DetectionResult(metrics=metrics, images=len(seen), unreadable=len(photos) - len(seen))


@torch.inference_mode()
def detect(model: nn.Module, images_bchw: Tensor, accelerator: Accelerator) -> list[dict[str, Tensor]]:
    """What a detector in evaluation mode gives for each of B images, on the CPU; none for no images.

    Args:
        model: on the accelerator's device.
        images_bchw: (B, 3, H, W), normalised; B may be 0, and then any shape.
        accelerator: of the training, for its precision.
    """
    if not len(images_bchw):
        return []
    with accelerator.autocast():
        found = model(images_bchw.to(accelerator.device))
    return [{name: value.cpu() for name, value in outputs.items()} for outputs in found]


def in_photo(
    outputs: Mapping[str, Tensor], split: CocoSplit, index: int, preprocessing: Letterbox, *, threshold: float = 0.0
) -> list[Detection]:
    """A detector's outputs for photo `index` of a split as objects in the photo's pixels, best first.

    Args:
        outputs: of `detect`.
        split: of the photo.
        index: of the photo.
        preprocessing: that made it the input.
        threshold: scores below it are left out.
    """
    photo = split.photos[index]
    arrays = {name: value.numpy() for name, value in outputs.items()}
    return find_detections(arrays, (photo.height, photo.width), preprocessing, split.classes, threshold=threshold)


def _shared_metrics(
    split: CocoSplit, results: list[dict[str, object]], accelerator: Accelerator
) -> dict[Kind, dict[str, float]]:
    """The metrics of all processes' results on the photos of a split, computed by the main one."""
    gathered: list[dict[str, Any]] = gather_object(results)
    shared: list[dict[Kind, dict[str, float]]] = [{}]
    if accelerator.is_main_process:
        gathered.sort(key=lambda result: result["image_id"])  # so that equal scores rank the same on any number
        truth = split.ground_truth()
        shared = [{kind: coco_metrics(truth, gathered, kind) for kind in IOU_TYPES}]
    return broadcast_object_list(shared)[0]  # type: ignore[no-any-return]
