"""One training step of each pretraining contender, and the memory that it takes; `benchmarks.pretraining` tells why."""

import copy
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.dense_masked import DenseMaskedPretraining
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import MODELS, PATCH_SIZE
from convmae_deploy.models.masking import draw_noise, keep_lowest
from convmae_deploy.models.pretraining import PretrainingConfig, build_pretraining

Precision = Literal["fp32", "bf16"]

VISIBLE, DENSE, UNMASKED = "visible cells", "dense masked", "dense, our gradients"
SEED = 0
LOSS_TOLERANCE: dict[Precision, float] = {"fp32": 1e-5, "bf16": 2e-2}  # relative, of the two losses
MEMORY_STEPS = 2  # the first makes AdamW's state, the second holds it throughout


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one contender's step is measured on."""

    variant: str
    image_size: tuple[int, int]
    batch_size: int
    mask_ratio: float
    precision: Precision
    compiled: bool
    threads: int
    device: str


class Bench:
    """Contenders that train one set of weights, and the images and masks for it."""

    def __init__(self, workload: Workload, names: Sequence[str]) -> None:
        self.workload = workload
        self._generator = torch.Generator().manual_seed(SEED)
        torch.set_num_threads(workload.threads)
        torch.manual_seed(SEED)
        config = replace(MODELS[workload.variant](), image_size=workload.image_size)
        model = build_pretraining(config, PretrainingConfig(decoder_mlp_ratio=config.mlp_ratios[0]))
        model = model.to(workload.device)
        unmasked = copy.copy(model)  # the same modules and parameters
        unmasked.masked_convolution = False
        models: dict[str, nn.Module] = {VISIBLE: model, DENSE: DenseMaskedPretraining(model), UNMASKED: unmasked}
        self._models = {name: torch.compile(models[name]) if workload.compiled else models[name] for name in names}
        self._optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
        shape = (workload.batch_size, 3, *workload.image_size)
        self._images = torch.randn(shape, generator=self._generator).to(workload.device)

    def draw_mask(self) -> Tensor:
        """Visible cells (B, K), others each time."""
        workload = self.workload
        noise = draw_noise(workload.batch_size, workload.image_size, PATCH_SIZE, self._generator)
        return keep_lowest(noise, workload.mask_ratio).to(workload.device)

    def loss(self, name: str, kept: Tensor) -> Tensor:
        """A contender's loss, ready for the backward pass."""
        enabled = self.workload.precision == "bf16"
        with torch.autocast(self.workload.device, torch.bfloat16, enabled=enabled):
            loss: Tensor = self._models[name](self._images, kept)
        return loss

    def step(self, name: str, kept: Tensor) -> float:
        """Seconds of one training step."""
        begun = time.perf_counter()
        self.loss(name, kept).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self.workload.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun


def check_losses(bench: Bench, names: Sequence[str]) -> dict[str, float]:
    """Each contender's loss for the same weights, images and mask.

    Raises:
        ConvMAEError: that of visible cells is not the dense masked one.
    """
    kept = bench.draw_mask()
    losses = {name: bench.loss(name, kept).item() for name in names}
    error = abs(losses[VISIBLE] - losses[DENSE]) / losses[DENSE]
    if not error <= LOSS_TOLERANCE[bench.workload.precision]:
        raise ConvMAEError(
            f"{VISIBLE} must give the loss of {DENSE}, {losses[DENSE]:.7f}; got {losses[VISIBLE]:.7f}: its speed means "
            "nothing"
        )
    return losses


def measure(
    bench: Bench, names: Sequence[str], warm_up: int, rounds: int, advance: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of every timed step of each contender; `advance` is called after each round, warm-up included."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warm_up, rounds):
        kept = bench.draw_mask()
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            taken = bench.step(name, kept)
            if turn >= 0:
                seconds[name].append(taken)
        advance()
    return seconds


def peak_gb(workload: Workload, name: str) -> float:
    """Most memory that this process has used after some steps of one contender."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bench = Bench(workload, [name])
        for _ in range(MEMORY_STEPS):
            bench.step(name, bench.draw_mask())
    if workload.device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include what the parent had used when it started this process
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def peak_gb_alone(workload: Workload, name: str) -> float:
    """`peak_gb` of a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_gb, workload, name).result()
