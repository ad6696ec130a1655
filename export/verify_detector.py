"""Does a detector's graph give PyTorch's numbers? Three tiers, since two near ties may change places among detections.

1. Dense maps: pyramid, objectness and deltas, element by element.
2. Heads: class logits, box deltas and masks of the reference's own regions, which the graph is fed, element by element.
3. Detections of photos, against the model's own inference, as sets: pairs of one class that overlap by 0.9 and more and
   whose scores differ by at most 1e-3. Rows so near to the threshold or to the last of 100 do not count. Suppression
   must have settled on all of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torchvision.ops import box_iou

from convmae_deploy.models.detector import ConvMAEDetector
from convmae_deploy.runtime.manifest import DETECTOR_OUTPUTS, MAX_DETECTIONS
from export.divergence import REFERENCE, reading_inputs
from export.gates import FP32, Comparison, FloatArray, worst_of
from export.inputs import PICTURES, Batch
from export.runners import Outputs, Runner, onnx_runner, torch_runner
from export.static_detector import DENSE, HEADS, OUTPUTS, PROBES, StaticDetector
from export.verify import Failure, Verification, verify

DETECTIONS = "detections"  # the third tier's row of the report
FED = ("proposals", "mask_boxes", "labels", "num")  # what the heads get from the reference in the second tier
ELEMENTWISE = (*DENSE, *HEADS, "masks")
SAME_OVERLAP = 0.9  # least IoU of a pair
SAME_SCORE = 1e-3  # largest difference of a pair's scores
UNMATCHED = 0.02  # largest share of rows without a partner


@dataclass(frozen=True, kw_only=True)
class Matching:
    """How the detections of one image compare."""

    decided: int  # rows of both sides that are far enough from the threshold and from the last of 100
    unmatched: int  # those of them without a partner
    score_difference: float  # largest of a pair
    settled: bool  # whether the graph's suppression had rounds enough
    boxes: tuple[FloatArray, FloatArray]  # (pairs, 4) of each side


def own_inference(model: ConvMAEDetector) -> Runner:
    """The model's own detections, with zeros behind them as the graph gives them."""

    @torch.inference_mode()
    def run(images: FloatArray) -> Outputs:
        found = model(torch.from_numpy(images))
        outputs = {
            name: np.zeros((len(images), *spec.shape), dtype=spec.dtype) for name, spec in DETECTOR_OUTPUTS.items()
        }
        for image, detections in enumerate(found):
            for name, values in detections.items():
                outputs[name][image, : len(values)] = values.numpy()
            outputs["num"][image] = len(detections["scores"])
        outputs["converged"][:] = 1
        return outputs

    return run


def with_fed_heads(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the graph with probes whose heads read FED from inputs `reference/NAME`; gives ELEMENTWISE."""
    outputs = {output.name: output for output in model.graph.output}
    kinds = {name: (outputs[name].type.tensor_type.elem_type, None) for name in FED}
    fed = reading_inputs(model, kinds)
    read = {value.name.removeprefix(REFERENCE) for value in fed.graph.input}
    if not read.issuperset(FED):
        raise RuntimeError(f"nothing in the graph reads {', '.join(sorted(set(FED) - read))}")
    del fed.graph.output[:]
    fed.graph.output.extend(outputs[name] for name in ELEMENTWISE)
    return fed


class FedRunner:
    """The graph with fed heads, image by image, and the reference that feeds it."""

    def __init__(self, model: onnx.ModelProto, reference: StaticDetector) -> None:
        """
        Args:
            model: the exported graph with its probes.
            reference: in evaluation mode.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # the exception says it all
        options.enable_cpu_mem_arena = False
        self.session = onnxruntime.InferenceSession(
            with_fed_heads(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.eager = torch_runner(reference, (*OUTPUTS, *PROBES))
        self.last: tuple[FloatArray, Outputs] | None = None  # what the reference gave for the last images

    def reference(self, images: FloatArray) -> Outputs:
        """PyTorch's values; image by image, so that near ties fall alike in every batch."""
        if self.last is None or self.last[0] is not images:
            parts = [self.eager(images[index : index + 1]) for index in range(len(images))]
            self.last = images, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return self.last[1]

    def candidate(self, images: FloatArray) -> Outputs:
        """The graph's ELEMENTWISE with PyTorch's regions."""
        expected = self.reference(images)
        feeds = {REFERENCE + name: expected[name] for name in FED}
        return dict(zip(ELEMENTWISE, self.session.run(list(ELEMENTWISE), {"image": images} | feeds), strict=True))


def verify_detector(
    wrapper: StaticDetector,
    probed: onnx.ModelProto,
    path: Path,
    batches: Iterable[Batch],
    *,
    between: tuple[str, str],
) -> Verification:
    """All three tiers; detections are compared on photos alone, as noise and blank images are full of ties.

    Args:
        wrapper: what was exported; the reference of the first two tiers pools regions as it does.
        probed: the exported graph with its probes.
        path: the bundle's own graph, without them.
        batches: the inputs.
        between: what the two are, for the report: (reference, runtime).
    """
    batches = list(batches)
    fed = FedRunner(probed, wrapper)
    tiers = verify(fed.reference, fed.candidate, batches, FP32, outputs=ELEMENTWISE, between=between)
    threshold = wrapper.model.roi_heads.score_thresh
    own, graph = own_inference(wrapper.model), onnx_runner(path, OUTPUTS)
    chosen = [batch for batch in batches if batch.name.startswith(PICTURES)]
    matchings = [match_batch(own(batch.images), graph(batch.images), threshold) for batch in chosen]
    comparison = judge([matching for batch in matchings for matching in batch])
    worst = max(range(len(chosen)), key=lambda index: badness(matchings[index]))
    failures = list(tiers.failures)
    if comparison.problem is not None:
        failures.append(Failure(batch=chosen[worst], output=DETECTIONS, comparison=comparison))
    report = tiers.report.model_copy(
        update={
            "outputs": tiers.report.outputs | {DETECTIONS: worst_of([(chosen[worst].name, comparison)])},
            "tolerance": f"{FP32.describe()}; detections of photos: at most {UNMATCHED:.0%} without a partner of the "
            f"same class with IoU >= {SAME_OVERLAP} and a score within {SAME_SCORE:g}, suppression settled on all",
            "passed": not failures,
        }
    )
    return Verification(report=report, failures=tuple(failures))


def badness(matchings: list[Matching]) -> tuple[int, int]:
    """Order of batches, the worst last: by images whose suppression has not settled, then by rows without a partner."""
    return sum(not matching.settled for matching in matchings), sum(matching.unmatched for matching in matchings)


def detections_problem(expected: Outputs, found: Outputs, threshold: float) -> str | None:
    """What is wrong with a batch's detections, in words; None: nothing."""
    return judge(match_batch(expected, found, threshold)).problem


def match_batch(expected: Outputs, found: Outputs, threshold: float) -> list[Matching]:
    """The matching of each image of two batches of detections, both found above a threshold."""
    return [
        match_image(image_of(expected, image), image_of(found, image), threshold)
        for image in range(len(expected["num"]))
    ]


def image_of(outputs: Outputs, image: int) -> Outputs:
    """One image of a batch's outputs."""
    return {name: values[image] for name, values in outputs.items()}


def match_image(expected: Outputs, found: Outputs, threshold: float) -> Matching:
    """Pairs the detections of an image greedily, the reference's best first, each with its closest partner."""
    (expected_boxes, expected_scores, expected_labels), (found_boxes, found_scores, found_labels) = (
        [side[name][: int(side["num"])] for name in ("boxes", "scores", "labels")] for side in (expected, found)
    )
    difference = np.abs(expected_scores[:, None] - found_scores[None, :])
    overlap = box_iou(torch.from_numpy(expected_boxes), torch.from_numpy(found_boxes)).numpy()
    suits = (expected_labels[:, None] == found_labels[None, :]) & (difference <= SAME_SCORE)
    closeness = np.where(suits & (overlap >= SAME_OVERLAP), overlap, 0.0)  # (expected, found); 0: no pair
    rows: list[int] = []
    columns: list[int] = []
    for row in range(len(closeness)):
        column = int(closeness[row].argmax()) if closeness.shape[1] else 0
        if closeness.shape[1] and closeness[row, column] > 0:
            rows.append(row)
            columns.append(column)
            closeness[:, column] = 0.0
    unmatched = [decided(expected_scores, threshold), decided(found_scores, threshold)]
    total = sum(int(side.sum()) for side in unmatched)
    unmatched[0][rows] = False
    unmatched[1][columns] = False
    return Matching(
        decided=total,
        unmatched=sum(int(side.sum()) for side in unmatched),
        settled=bool(found["converged"]),
        score_difference=float(difference[rows, columns].max(initial=0.0)),
        boxes=(expected_boxes[rows], found_boxes[columns]),
    )


def decided(scores: FloatArray, threshold: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows are detections whatever rounding does: above the threshold, and above the last of a full list."""
    least = max(threshold, float(scores[-1])) if len(scores) == MAX_DETECTIONS else threshold
    return np.asarray(scores > least + SAME_SCORE)


def judge(matchings: list[Matching]) -> Comparison:
    """One comparison of all images: differences of scores, cosine of the pairs' boxes, share of rows with a partner."""
    total, unmatched = (sum(getattr(matching, name) for matching in matchings) for name in ("decided", "unmatched"))
    share = unmatched / max(total, 1)
    expected, found = (
        np.concatenate([matching.boxes[side] for matching in matchings]).astype(np.float64).ravel() for side in (0, 1)
    )
    norms = float(np.linalg.norm(expected) * np.linalg.norm(found))
    difference = max(matching.score_difference for matching in matchings)
    unsettled = sum(not matching.settled for matching in matchings)
    problem = None
    if share > UNMATCHED:
        problem = f"{unmatched} of {total} detections have no partner, more than {UNMATCHED:.0%}"
    elif unsettled:
        problem = f"on {unsettled} of {len(matchings)} images suppression needs more rounds than the graph has"
    return Comparison(
        max_abs=difference,
        max_rel=difference,  # scores are at most 1
        cosine=min(1.0, float(expected @ found) / norms) if norms else 1.0,
        excess=share / UNMATCHED,
        worst_image=max(range(len(matchings)), key=lambda image: badness([matchings[image]])),
        images_decided=total,
        images_agreeing=total - unmatched,
        problem=problem,
    )
