"""What a manifest says of how a graph was made and how its numbers were proven."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A part of a manifest: what it does not know it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OutputNumerics(Record):
    """The worst disagreement of one output with PyTorch over all inputs compared."""

    max_abs: float  # largest absolute difference
    max_rel: float  # largest absolute difference / largest absolute reference value
    cosine: float  # smallest cosine similarity of the flattened output of one image
    snr_db: float | None = None  # smallest ratio of one image's output to its difference; None: not measured
    top1_agreement: float | None = None  # share of images with the same largest entry; logits only
    excess: float = 0.0  # largest difference / what the tolerance allows there, or noise / allowed; at most 1 passes
    worst_input: str = ""  # the input on which `excess` was seen
    passed: bool


class NumericsReport(Record):
    """What was compared with PyTorch, on what, with which tolerance, and how it ended."""

    runtime: str  # for instance "onnxruntime 1.31.1 (CPUExecutionProvider)"
    reference: str  # for instance "torch 2.15.0 eager fp32 (cpu)"
    inputs: tuple[str, ...]  # for instance ("random batch 1", "photos batch 2", ...)
    tolerance: str  # the gate in words and numbers
    outputs: dict[str, OutputNumerics]
    passed: bool


class ExportCost(Record):
    """What making a file took, on the machine that made it."""

    seconds: float  # tracing and translating
    verification_seconds: float  # running it and PyTorch on all inputs
    peak_bytes: int  # most memory of the exporting process meanwhile


class Quantisation(Record):
    """How an int8 graph was made, and what it keeps of the fp32 graph."""

    calibrated_on: str  # for instance "128 photos of train"
    method: str  # how the ranges of activations were found
    layers: int  # in int8
    returned: tuple[str, ...]  # layers that went back to fp32 or fp16, the most sensitive first
    excluded: tuple[str, ...] = ()  # layers that the user kept out of int8
    metric: str  # for instance "top-1 on 1000 photos of imagenette"
    samples: int
    fp32: float  # the metric in percent
    int8: float
    max_drop: float  # points that it was allowed to lose

    @property
    def drop(self) -> float:
        """Points that it lost; below 0: won."""
        return self.fp32 - self.int8
