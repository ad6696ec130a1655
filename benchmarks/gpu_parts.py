"""The parts of `benchmarks.gpu`: `python -m benchmarks.gpu_parts PART RESULTS` runs one on a GPU.

A part writes what it found so far whenever it has found something, as JSON, so that one that is ended in the middle
leaves that. Times are medians, after a warm-up, between two waits for the device.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.pretraining_steps import DENSE, VISIBLE, Bench, Workload
from convmae_deploy.engine.precision import Precision
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_file
from convmae_deploy.machine import available_cores
from convmae_deploy.models.classifier import build_classifier
from convmae_deploy.models.convmae import ConvMAEConfig, base
from convmae_deploy.models.depthwise import CONVOLUTIONS, GRADIENTS, by_convolution, by_products, fastest
from convmae_deploy.models.detector import build_detector, nano_fpn
from convmae_deploy.tasks import load_bundle
from training import pretrain


@dataclass(frozen=True)
class Expectation:
    """What is expected of a finding."""

    words: str
    least: float | None = None
    most: float | None = None

    def holds(self, value: Any) -> bool:
        """Whether a number lies between the two; what is no number is for people to judge."""
        if not isinstance(value, int | float):
            return True
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


EXPECTED: Final = {  # of an H200; an estimate where nothing else is said
    "copy TB/s": Expectation("4.3 (measured there)", least=4),
    "bf16 product TFLOP/s": Expectation("770 to 800 (measured there)", least=700),
    "visible ms": Expectation("30 to 45", most=45),
    "visible peak GB": Expectation("9 to 14", most=14),
    "dense loss over visible": Expectation("1, within 2 %", least=0.98, most=1.02),
    "dense over visible": Expectation("1.5 to 2.1; 1.4 is needed", least=1.4),
    "compiled over visible": Expectation("less than 1", most=1),
    "finetuning ms": Expectation("55 to 80", most=80),
    "convolution ms": Expectation("0.1; above 0.5 a kernel pays", most=0.5),
    "pytest": Expectation("all pass"),
    "bf16 images/s": Expectation("2000 or more (60 % of the step alone)", least=2000),
    "fp16 images/s": Expectation("as bf16", least=2000),
    "bf16 epoch 2": Expectation("a finite loss"),
    "fp16 epoch 2": Expectation("a finite loss"),
    "bf16 skipped updates": Expectation("0", most=0),
    "fp16 skipped updates": Expectation("at most 3, while its scale is found", most=3),
    "waits an update": Expectation("46 or fewer (traced)", most=46),
    "ONNX Runtime": Expectation("CUDAExecutionProvider"),
    "ONNX Runtime largest difference": Expectation("1e-3 or less", most=1e-3),
}


@dataclass(frozen=True)
class Run:
    """Where a part runs, and where what it finds goes."""

    device: Literal["cpu", "cuda"]
    found: dict[str, Any]
    write: Callable[[], None]

    @property
    def dry(self) -> bool:
        """Whether it is to be small, on a CPU."""
        return self.device == "cpu"

    def says(self, what: str, value: Any) -> None:
        """Notes a finding."""
        self.found[what] = value
        self.write()

    def milliseconds(self, work: Callable[[], Any], rounds: int = 20) -> float:
        """Median time of a piece of work, after three warm-ups."""
        taken = []
        for turn in range(2 if self.dry else rounds + 3):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            if turn >= (1 if self.dry else 3):
                taken.append(1000 * (time.perf_counter() - began))
        return statistics.median(taken)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if not self.dry:
            torch.cuda.synchronize()


def ceilings(run: Run) -> None:
    """What the device moves and multiplies at best."""
    side = 64 if run.dry else 8192
    source = torch.randn(2 * side, side, device=run.device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * 4
    run.says("copy TB/s", moved / run.milliseconds(lambda: target.copy_(source)) / 1e9)
    left, right = (torch.randn(side, side, device=run.device, dtype=torch.bfloat16) for _ in range(2))
    run.says("bf16 product TFLOP/s", 2 * side**3 / run.milliseconds(lambda: left @ right) / 1e9)


def encoder(run: Run) -> ConvMAEConfig:
    """ConvMAE-B; the smallest that has everything on a CPU."""
    small = ConvMAEConfig(embed_dims=(8, 16, 32), depths=(1, 1, 1), mlp_ratios=(1, 1, 1), num_heads=2)
    return replace(small, image_size=(64, 64)) if run.dry else base()


def workload(run: Run, **changes: Any) -> Workload:
    """A step at batch 128 in bf16; small on a CPU."""
    usual = Workload(
        encoder=encoder(run),
        batch_size=1 if run.dry else 128,
        mask_ratio=0.75,
        precision="fp32" if run.dry else "bf16",
        device=run.device,
        threads=torch.get_num_threads(),
        compiled=False,
        decoder_blocks=1 if run.dry else None,
        compiler="eager" if run.dry else "inductor",
    )
    return replace(usual, **changes)


def step_ms(run: Run, bench: Bench, rounds: int = 12) -> float:
    """Median time of a training step, after three; the gradient's first one allocates."""
    warm = 1 if run.dry else 3
    taken = [1000 * bench.step(turn) for turn in range(warm + (1 if run.dry else rounds))]
    return statistics.median(taken[warm:])


def step(run: Run) -> None:
    """A pretraining step on visible cells beside the authors' dense one, of the same weights."""
    visible = Bench(workload(run), VISIBLE)
    loss = visible.loss(0)
    visible_ms = step_ms(run, visible)
    run.says("visible ms", visible_ms)
    run.says("visible peak GB", visible.peak_gb())
    del visible
    dense = Bench(workload(run), DENSE)
    run.says("dense loss over visible", dense.loss(0) / loss)
    run.says("dense over visible", step_ms(run, dense) / visible_ms)


def compiled(run: Run) -> None:
    """The same step through torch.compile, beside it as it is."""
    eager = step_ms(run, Bench(workload(run), VISIBLE))
    found = step_ms(run, Bench(workload(run, compiled=True), VISIBLE))
    run.says("compiled ms", found)
    run.says("compiled over visible", found / eager)


def others(run: Run) -> None:
    """Steps of video pretraining and of finetuning."""
    frames, batch = (2, 1) if run.dry else (16, 16)
    run.says("video ms", step_ms(run, Bench(workload(run, frames=frames, batch_size=batch, mask_ratio=0.9), VISIBLE)))
    config = encoder(run)
    model = build_classifier(config, num_classes=1000).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randn(1 if run.dry else 128, 3, *config.image_size, device=run.device)

    def update() -> None:
        with torch.autocast(run.device, torch.bfloat16):
            logits = model(images)
        logits.float().logsumexp(1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    run.says("finetuning ms", run.milliseconds(update, rounds=10))


def depthwise(run: Run) -> None:
    """The depthwise convolution of visible cells by all algorithms, in stage 1 of ConvMAE-B."""
    cells, channels = (8, 8) if run.dry else (128 * 49, 256)
    dtype = torch.float32 if run.dry else torch.bfloat16
    windows = torch.randn(cells, 8, 8, channels, device=run.device, dtype=dtype)
    weight = torch.randn(channels, 1, 5, 5, device=run.device, dtype=dtype)
    gradient = torch.randn(cells, 4, 4, channels, device=run.device, dtype=dtype)
    exact = by_convolution(windows.double(), weight.double(), (0, 0))
    exact_gradient = by_products(windows.double(), gradient.double(), (5, 5))
    algorithms: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
        **{name: (partial(convolve, windows, weight, (0, 0)), exact) for name, convolve in CONVOLUTIONS.items()},
        **{
            f"weight gradient, {name}": (partial(compute, windows, gradient, (5, 5)), exact_gradient)
            for name, compute in GRADIENTS.items()
        },
    }
    with torch.compiler.set_stance("force_eager" if run.dry else "default"):
        run.says("fastest", str(fastest(weight.shape, 4, weight.device, dtype)[0]))
        for name, (work, expected) in algorithms.items():
            run.says(f"{name} ms", run.milliseconds(work))
            run.says(f"{name} relative error", float((work().double() - expected).norm() / expected.norm()))


def tests(run: Run) -> None:
    """The tests that need a GPU, in the files that hold some; a dry run counts these files."""
    files = [str(file) for file in sorted(Path("tests").rglob("test_*.py")) if "pytest.mark.gpu" in file.read_text()]
    if run.dry:
        return run.says("pytest", f"{len(files)} files")
    command = [sys.executable, "-m", "pytest", "-q", "--gpu", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = [line for line in done.stdout.splitlines() if line][-1:]
    run.says("pytest", last[0] if last else "nothing")
    if done.returncode:
        raise ConvMAEError(f"pytest --gpu ended with {done.returncode}: {done.stdout[-1500:]}{done.stderr[-500:]}")


def program(precision: Precision, run: Run) -> None:
    """An epoch of `training.pretrain` over JPEGs, and another after --resume: finite, and how fast, all included."""
    photos, batch = (2, 2) if run.dry else (20480, 128)
    preset = pretrain.PRESETS["nano" if run.dry else "base"][1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_jpegs(folder / "photos", photos)
        for epochs in (1, 2):
            settings = replace(
                preset.run,
                out=folder / "run",
                precision="fp32" if run.dry else precision,  # a CPU has no fp16, and most emulate bf16
                resume=epochs == 2,
                workers=0 if run.dry else max(available_cores() - 2, 1),
            )
            config = replace(
                preset,
                data=str(folder / "photos"),
                image_size=(64, 64) if run.dry else None,
                picture_epochs=0,
                model=replace(preset.model, decoder_depth=1) if run.dry else preset.model,
                optimisation=replace(preset.optimisation, epochs=epochs, batch_size=batch, micro_batch_size=batch),
                run=settings,
            )
            loop = pretrain.prepare(config)
            status, line = loop.fit(), loop.run.folder.metrics()[-1]
            loss = line["train_loss"]
            if status or not math.isfinite(loss):
                raise ConvMAEError(f"epoch {epochs} ended with status {status} and the loss {loss}")
            run.says(f"{precision} epoch {epochs}", f"loss {loss:.4f}")
            run.says(f"{precision} images/s", photos / max(line["seconds"], 0.1))
            run.says(f"{precision} skipped updates", line["skipped_updates"])


def detector(run: Run) -> None:
    """Waits for the device in an update of the nano detector, as PyTorch itself counts them."""
    config, heads = nano_fpn()
    photos = 4
    if run.dry:
        config, heads, photos = encoder(run), replace(heads, channels=8, fc_width=8, regions_per_image=8), 1
    side = config.image_size[0]
    model = build_detector(config, heads, num_classes=80).to(run.device)
    images = torch.randn(photos, 3, side, side, device=run.device)
    boxes = torch.tensor([[4.0, 4.0, 40.0, 50.0], [20.0, 10.0, 60.0, 60.0]], device=run.device)
    labels = torch.tensor([3, 70], device=run.device)
    masks = torch.ones(2, side, side, dtype=torch.uint8, device=run.device)
    targets = [{"boxes": boxes, "labels": labels, "masks": masks} for _ in range(photos)]

    def update() -> None:
        sum(model(images, targets).values()).backward()

    update()
    if not run.dry:
        torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        update()
    if not run.dry:
        torch.cuda.set_sync_debug_mode("default")
    run.says("waits an update", sum("synchroniz" in str(entry.message) for entry in caught))
    run.says("update ms", run.milliseconds(update, rounds=5))


def onnxruntime(run: Run) -> None:
    """The shipped bundle in ONNX Runtime on CUDA against the CPU; said where its package is not that for GPUs."""
    from convmae_deploy.backends.onnxruntime_backend import OnnxRuntimeBackend  # a package that may not be there

    bundle = load_bundle(Path(__file__).parents[1] / "serving" / "bundles" / "imagenette-nano")
    batch = np.random.default_rng(0).standard_normal((2, *bundle.manifest.input.shape), dtype=np.float32)
    names = list(bundle.manifest.outputs)
    expected = OnnxRuntimeBackend(bundle, device="cpu").run(batch, names)
    backend = OnnxRuntimeBackend(bundle, device=run.device)
    found = backend.run(batch, names)
    run.says("ONNX Runtime", backend.providers[0])
    worst = max(float(np.abs(found[name] - values).max()) for name, values in expected.items())
    run.says("ONNX Runtime largest difference", worst)
    run.says("ONNX Runtime ms", run.milliseconds(lambda: backend.run(batch, names)))


def write_jpegs(folder: Path, count: int) -> None:
    """Photos of gradients in two classes, of which every 512th is the same file."""
    generator = np.random.default_rng(0)
    for index in range(count):
        place = folder / "train" / f"class{index % 2}" / f"{index}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        if index >= 512:
            place.hardlink_to(place.with_name(f"{index % 512}.jpg"))
            continue
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(place, quality=90)


@dataclass(frozen=True)
class Part:
    """What is run, and the most seconds that it may take."""

    run: Callable[[Run], None]
    seconds: float


PARTS: Final = {  # in order of worth
    "ceilings": Part(ceilings, 40),
    "step": Part(step, 90),
    "tests": Part(tests, 180),
    "depthwise": Part(depthwise, 120),
    "bf16": Part(partial(program, "bf16"), 120),
    "fp16": Part(partial(program, "fp16"), 120),
    "detector": Part(detector, 60),
    "others": Part(others, 60),
    "compiled": Part(compiled, 120),
    "onnxruntime": Part(onnxruntime, 60),
}


def measure(name: str, results: Path, *, dry: bool) -> None:
    """Runs a part here, and keeps what it finds in `results`."""
    found: dict[str, Any] = {}

    def write() -> None:
        with atomic_file(results) as temporary:
            temporary.write_text(json.dumps(found))

    PARTS[name].run(Run("cpu" if dry else "cuda", found, write))


if __name__ == "__main__":
    measure(sys.argv[1], Path(sys.argv[2]), dry=False)
