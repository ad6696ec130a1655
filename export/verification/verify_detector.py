"""Does a detector's graph give PyTorch's numbers? Three tiers, since two near ties may change places among detections.

1. Dense maps: pyramid, objectness and deltas, element by element.
2. Heads: class logits, box deltas and masks of the reference's own regions, which the graph is fed, element by element.
3. Detections of photos, against the model's own inference, as sets. In fp32: pairs of one class that overlap by 0.9 and
   more and whose scores differ by at most 1e-3. Rows so near to the threshold or to the last of 100 do not count. In
   other precisions see `detection_sets`. Suppression must have settled on all of them.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import torch

from convmae_deploy.backends.base import FloatArray, OpenGraph, Outputs
from convmae_deploy.models.detector import ConvMAEDetector
from convmae_deploy.tasks.detection import DETECTOR_OUTPUTS
from export.graphs.static_detector import DENSE, HEADS, OUTPUTS, PROBES, StaticDetector
from export.runtimes.runners import Runner, one_by_one, open_graph, torch_runner
from export.verification.detection_matching import DETECTIONS
from export.verification.detection_sets import compare_detections, describe
from export.verification.divergence import REFERENCE, reading_inputs
from export.verification.elementwise import Failure, TracedFile, Verification, verify
from export.verification.gates import GATES, Comparison, incomparable, worst_of
from export.verification.inputs import Batch
from export.verification.samples import PICTURES

FED = ("proposals", "mask_boxes", "labels", "num")  # what the heads get from the reference in the second tier
ELEMENTWISE = (*DENSE, *HEADS, "masks")


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
    types = {name: outputs[name].type.tensor_type for name in FED}
    kinds = {  # with their shapes, without which some runtimes take no input
        name: (kind.elem_type, [side.dim_param or side.dim_value for side in kind.shape.dim])
        for name, kind in types.items()
    }
    fed = reading_inputs(model, kinds)
    read = {value.name.removeprefix(REFERENCE) for value in fed.graph.input}
    if not read.issuperset(FED):
        raise RuntimeError(f"nothing in the graph reads {', '.join(sorted(set(FED) - read))}")
    del fed.graph.output[:]
    fed.graph.output.extend(outputs[name] for name in ELEMENTWISE)
    return fed


class FedRunner:
    """The graph with fed heads, image by image, and the reference that feeds it."""

    def __init__(self, file: TracedFile, reference: StaticDetector) -> None:
        """
        Args:
            file: whose graph has its probes.
            reference: in evaluation mode.
        """
        self.runtime = file.runtime
        self.model = with_fed_heads(file.graph.model)
        self.opened: OpenGraph | None = None
        self.eager = one_by_one(torch_runner(reference, (*OUTPUTS, *PROBES)))
        self.last: tuple[FloatArray, Outputs] | None = None  # what the reference gave for the last images

    def reference(self, images: FloatArray) -> Outputs:
        """PyTorch's values; image by image, so that near ties fall alike in every batch."""
        if self.last is None or self.last[0] is not images:
            self.last = images, self.eager(images)
        return self.last[1]

    def candidate(self, images: FloatArray) -> Outputs:
        """The graph's ELEMENTWISE with PyTorch's regions."""
        self.opened = self.opened or open_graph(self.runtime, self.model)
        expected = self.reference(images)
        feeds = {REFERENCE + name: expected[name] for name in FED}
        return self.opened.run(ELEMENTWISE, {"image": images} | feeds)


def verify_detector(wrapper: StaticDetector, own: Runner, file: TracedFile, batches: Iterable[Batch]) -> Verification:
    """All three tiers; detections are compared on photos alone, as noise and blank images are full of ties.

    Args:
        wrapper: what was exported, in fp32; the reference of the first two tiers pools regions as it does.
        own: the model's own inference, the reference of the third.
        file: the file, and the exported graph with its probes.
        batches: the inputs.
    """
    batches, gate = list(batches), GATES[file.precision]
    fed = FedRunner(file, wrapper)
    tiers = verify(fed.reference, fed.candidate, batches, gate, outputs=ELEMENTWISE, between=file.between)
    failures = list(tiers.failures)
    chosen = [batch for batch in batches if batch.name.startswith(PICTURES)]
    worst, comparison = verify_sets(wrapper.model.roi_heads.score_thresh, own, file, chosen)
    if comparison.problem is not None:
        failures.append(Failure(batch=worst, output=DETECTIONS, comparison=comparison))
    report = tiers.report.model_copy(
        update={
            "outputs": tiers.report.outputs | {DETECTIONS: worst_of([(worst.name, comparison)])},
            "tolerance": f"{gate.describe()}; {describe(file.precision)}",
            "passed": not failures,
        }
    )
    return Verification(report=report, failures=tuple(failures))


def verify_sets(threshold: float, own: Runner, file: TracedFile, chosen: Sequence[Batch]) -> tuple[Batch, Comparison]:
    """The third tier: the batch that is worst by itself, and the comparison of all of them together."""
    precision, runner = file.precision, file.runner(OUTPUTS)
    try:
        expected, found = ([side(batch.images) for batch in chosen] for side in (own, runner))
    except Exception as error:  # no runtime's exceptions have a common base; a graph that does not run has failed
        return chosen[0], incomparable(f"the graph does not run: {' '.join(str(error).split())}")
    for batch, outputs in zip(chosen, found, strict=True):
        if not all(np.isfinite(values).all() for values in outputs.values()):
            return batch, incomparable("the graph gives NaN or infinity")
    each = [compare_detections([e], [f], precision, threshold) for e, f in zip(expected, found, strict=True)]
    worst = max(range(len(chosen)), key=lambda index: (each[index].problem is not None, each[index].excess))
    return chosen[worst], compare_detections(expected, found, precision, threshold)
