"""What differs between the models that can be exported: one function for each kind of checkpoint."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convmae_deploy.bundle.manifest import (
    AnyPreprocessing,
    ClipPreprocessing,
    Letterbox,
    Precision,
    Preprocessing,
    SlidingWindow,
    standard_clips,
    standard_preprocessing,
    standard_windows,
)
from convmae_deploy.checkpoints.native import (
    CheckpointKind,
    CheckpointRecord,
    load_classifier,
    load_detector,
    load_segmenter,
    load_video_classifier,
    read_checkpoint,
)
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import ConvMAEClassifier
from convmae_deploy.models.detector import ConvMAEDetector
from convmae_deploy.models.segmenter import ConvMAESegmenter
from convmae_deploy.tasks.video import VIDEO_OUTPUTS
from export.graphs import static_detector
from export.graphs.pooling import replace_adaptive_pooling
from export.graphs.slotwise import replace_depthwise_3d
from export.graphs.static_detector import StaticDetector
from export.graphs.to_onnx import OUTPUTS, ClassifierGraph, VideoClassifierGraph
from export.verification.elementwise import Candidate, Verification, verify
from export.verification.gates import GATES, FloatArray, compare
from export.verification.inputs import Batch
from export.verification.runners import Outputs, Runner, file_runner, torch_runner
from export.verification.verify_detector import detections_problem, own_inference, verify_detector

Verifier = Callable[[Candidate, Iterable[Batch]], Verification]
Check = Callable[[Outputs, Outputs, Precision], str | None]  # (expected, found) of a batch -> what is wrong, in words


@dataclass(frozen=True, kw_only=True)
class ExportTask:
    """A model ready to be exported and to be compared with."""

    task: str
    model: nn.Module  # in evaluation mode, as it was loaded
    wrapper: nn.Module  # gives the tensors of `outputs` as a flat tuple; its model is its attribute `model`
    outputs: tuple[str, ...]
    reference: Runner  # PyTorch, which is right
    record: CheckpointRecord
    preprocessing: AnyPreprocessing
    verify: Verifier
    check: Check  # of the finished bundle's outputs against the reference's
    probes: tuple[str, ...] = ()  # what the wrapper gives besides, for `verify` alone; not in the bundle
    max_batch: int = 32  # default of the largest batch


class SegmenterGraph(nn.Module):
    """A segmenter's logits of one window. Exists only to be exported: its adaptive pooling is matrix products."""

    def __init__(self, model: ConvMAESegmenter) -> None:
        super().__init__()
        self.model = model
        replace_adaptive_pooling(self.model)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, h, w) to logits (B, K, h / 4, w / 4).

        The resize to the photo's own size is not in the graph: windows are averaged first, and full-size logits of 150
        classes would take 157 MB a window of 512 pixels instead of 10 MB.
        """
        return (self.model(image),)


def classifier_task(model: ConvMAEClassifier, record: CheckpointRecord) -> ExportTask:
    """A classifier with its features."""
    preprocessing = record.preprocessing or standard_preprocessing(record.model.image_size)
    if not isinstance(preprocessing, Preprocessing):
        raise wrong_preprocessing("a classifier", Preprocessing)
    wrapper = ClassifierGraph(model).eval()
    reference = torch_runner(wrapper, OUTPUTS)
    return ExportTask(
        task="classification",
        model=model,
        wrapper=wrapper,
        outputs=OUTPUTS,
        reference=reference,
        record=record,
        preprocessing=preprocessing,
        verify=partial(verify_elementwise, reference, OUTPUTS),
        check=elementwise_problem,
    )


def video_classifier_task(model: ConvMAEClassifier, record: CheckpointRecord) -> ExportTask:
    """A video classifier with its features; the reference keeps PyTorch's own 3-D convolutions."""
    assert record.video is not None  # the record of a video classifier says so
    preprocessing = record.preprocessing or standard_clips(record.model.image_size, frames=record.video.frames)
    if not isinstance(preprocessing, ClipPreprocessing):
        raise wrong_preprocessing("a video classifier", ClipPreprocessing)
    # frozen: where gradients are wanted the model convolves by itself, and asks its layers for their weights alone
    wrapper = VideoClassifierGraph(copy.deepcopy(model)).eval().requires_grad_(False)
    replace_depthwise_3d(wrapper)
    reference = torch_runner(VideoClassifierGraph(model).eval(), VIDEO_OUTPUTS)
    return ExportTask(
        task="video-classification",
        model=model,
        wrapper=wrapper,
        outputs=VIDEO_OUTPUTS,
        reference=reference,
        record=record,
        preprocessing=preprocessing,
        verify=partial(verify_elementwise, reference, VIDEO_OUTPUTS),
        check=elementwise_problem,
        max_batch=8,  # a clip is as much work as eight photos
    )


def segmenter_task(model: ConvMAESegmenter, record: CheckpointRecord) -> ExportTask:
    """A segmenter; the reference keeps PyTorch's own adaptive pooling."""
    preprocessing = record.preprocessing or standard_windows(record.model.image_size, None)
    if not isinstance(preprocessing, SlidingWindow):
        raise wrong_preprocessing("a segmenter", SlidingWindow)

    @torch.inference_mode()
    def reference(images: FloatArray) -> Outputs:
        return {"logits": model(torch.from_numpy(images)).numpy()}

    return ExportTask(
        task="segmentation",
        model=model,
        wrapper=SegmenterGraph(copy.deepcopy(model)).eval(),
        outputs=("logits",),
        reference=reference,
        record=record,
        preprocessing=preprocessing,
        verify=partial(verify_elementwise, reference, ("logits",)),
        check=elementwise_problem,
    )


def detector_task(model: ConvMAEDetector, record: CheckpointRecord) -> ExportTask:
    """A detector; the reference of its detections is the model's own inference."""
    preprocessing = record.preprocessing or Letterbox(size=record.model.input_size)
    if not isinstance(preprocessing, Letterbox):
        raise wrong_preprocessing("a detector", Letterbox)
    wrapper = StaticDetector(model.eval(), preprocessing.size).eval()

    return ExportTask(
        task="detection",
        model=model,
        wrapper=wrapper,
        outputs=static_detector.OUTPUTS,
        reference=own_inference(model),
        record=record,
        preprocessing=preprocessing,
        verify=partial(verify_detector, wrapper),
        check=partial(detections_problem, threshold=model.roi_heads.score_thresh),
        probes=static_detector.PROBES,
        max_batch=2,  # a batch of detections takes long, and photos come singly
    )


def verify_elementwise(
    reference: Runner, outputs: tuple[str, ...], candidate: Candidate, batches: Iterable[Batch]
) -> Verification:
    """Every output of a file, element by element."""
    runner, gate = file_runner(candidate.runner, candidate.path, outputs), GATES[candidate.precision]
    return verify(reference, runner, batches, gate, outputs=outputs, between=candidate.between)


def elementwise_problem(expected: Outputs, found: Outputs, precision: Precision) -> str | None:
    """The first output of `found` that differs by more than its precision may, and how."""
    for name, values in found.items():
        problem = compare(expected[name], values, GATES[precision]).problem
        if problem is not None:
            return f"{name}: {problem}"
    return None


TASKS: dict[CheckpointKind, tuple[Callable[..., tuple[Any, CheckpointRecord]], Callable[..., ExportTask]]] = {
    "classifier": (load_classifier, classifier_task),
    "detector": (load_detector, detector_task),
    "segmenter": (load_segmenter, segmenter_task),
    "video_classifier": (load_video_classifier, video_classifier_task),
}


def open_task(checkpoint: Path, image_size: tuple[int, int] | None) -> ExportTask:
    """The model of a run folder or checkpoint for images of (height, width) pixels; None: the checkpoint's own.

    Raises:
        ConvMAEError: it is none that can be exported, or damaged.
    """
    record, _ = read_checkpoint(checkpoint)
    if record.kind not in TASKS:
        raise ConvMAEError(
            f"{checkpoint} must hold one of {', '.join(TASKS)} and holds: {record.kind}; finetune it first "
            "(training.finetune, training.detect, training.segment, training.video_finetune)"
        )
    load, assemble = TASKS[record.kind]
    model, record = load(checkpoint, image_size=image_size)
    if not record.classes:
        raise ConvMAEError(
            f"{checkpoint} has no classes, so there is no head to export; finetune it first (training.finetune, "
            "training.video_finetune)"
        )
    return assemble(model, record)


def wrong_preprocessing(what: str, wanted: type[AnyPreprocessing]) -> ConvMAEError:
    """What to raise where a checkpoint's preprocessing is that of another task."""
    return ConvMAEError(f"the preprocessing of {what} must be {wanted.__name__}; train or import it again")
