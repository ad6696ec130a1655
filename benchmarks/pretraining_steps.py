"""One training step of each pretraining contender, each in a process of its own; `benchmarks.pretraining` tells why."""

import copy
import logging
import multiprocessing
import signal
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from benchmarks.dense_masked import DenseMaskedPretraining
from benchmarks.dense_masked_video import DenseMaskedVideo, plain_depthwise
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.machine import keep_freed_memory, peak_memory_bytes
from convmae_deploy.models.convmae import PATCH_SIZE, ConvMAEConfig
from convmae_deploy.models.masking import draw_noise, keep_lowest, keep_tubes
from convmae_deploy.models.pretraining import (
    ConvMAEPretraining,
    PretrainingConfig,
    build_pretraining,
    fastest_algorithms,
)
from convmae_deploy.models.video import VideoConfig
from convmae_deploy.models.video_pretraining import (
    VideoPretraining,
    VideoPretrainingConfig,
    build_video_pretraining,
)
from convmae_deploy.models.visible import VisibleTubes

Precision = Literal["fp32", "bf16"]

VISIBLE, DENSE, UNMASKED = "visible cells", "dense masked", "dense, our gradients"
DENSE_OURS = "dense masked, our gradients"
VISIBLE_ENCODER, DENSE_ENCODER = "visible cells, encoder", "dense masked, encoder"
IMAGE_CONTENDERS = VISIBLE, DENSE, UNMASKED
VIDEO_CONTENDERS = VISIBLE, DENSE, DENSE_OURS, VISIBLE_ENCODER, DENSE_ENCODER
SEED = 0
LOSS_TOLERANCE: dict[Precision, float] = {"fp32": 1e-5, "bf16": 2e-2}  # relative, of the two losses


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one contender's step is measured on."""

    encoder: ConvMAEConfig  # with the size of the images
    batch_size: int
    mask_ratio: float
    precision: Precision
    compiled: bool
    threads: int
    device: str
    frames: int | None = None  # frames a clip; None: images
    decoder_blocks: int | None = None  # None: as many as the authors'
    compiler: str = "inductor"  # torch.compile's backend


class EncoderAlone(nn.Module):
    """A latent with something to be trained by, in place of the decoder and its loss."""

    def __init__(self, model: nn.Module, latent: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.latent = latent

    def forward(self, clips_bcfhw: Tensor, kept_bk: Tensor) -> Tensor:
        """The mean square of the latent seen along one random direction; of all of it a LayerNorm would make 1."""
        latent = self.latent(clips_bcfhw, kept_bk).float()
        generator = torch.Generator().manual_seed(SEED)
        direction = torch.randn(latent.shape[-1], generator=generator).to(latent.device)
        return (latent @ direction).square().mean()


def image_models(workload: Workload) -> dict[str, nn.Module]:
    """The contenders of images, all of one set of weights."""
    default = PretrainingConfig(decoder_mlp_ratio=workload.encoder.mlp_ratios[0])
    decoder = replace(default, decoder_depth=workload.decoder_blocks or default.decoder_depth)
    model = build_pretraining(workload.encoder, decoder)
    unmasked = copy.copy(model)  # the same modules and parameters
    unmasked.masked_convolution = False
    return {VISIBLE: model, DENSE: DenseMaskedPretraining(model), UNMASKED: unmasked}


def video_models(workload: Workload, frames: int) -> dict[str, nn.Module]:
    """The contenders of videos, all of one set of weights."""
    default = VideoPretrainingConfig()
    decoder = replace(default, decoder_depth=workload.decoder_blocks or default.decoder_depth)
    model = build_video_pretraining(workload.encoder, VideoConfig(frames=frames), decoder)
    dense = DenseMaskedVideo(model, plain_depthwise)
    return {
        VISIBLE: model,
        DENSE: dense,
        DENSE_OURS: DenseMaskedVideo(model),
        VISIBLE_ENCODER: EncoderAlone(model, lambda clips, kept: visible_latent(model, clips, kept)),
        DENSE_ENCODER: EncoderAlone(dense, dense.latent),
    }


def visible_latent(model: VideoPretraining, clips_bcfhw: Tensor, kept_bk: Tensor) -> Tensor:
    """What the decoder is given."""
    height, width = clips_bcfhw.shape[3:]
    return model.encode(clips_bcfhw, VisibleTubes(kept_bk, (height // PATCH_SIZE, width // PATCH_SIZE)))


class Bench:
    """A contender in this process. Weights, images and each round's masks are the same for all of a workload."""

    def __init__(self, workload: Workload, name: str) -> None:
        self.workload = workload
        torch.set_num_threads(workload.threads)
        torch.manual_seed(SEED)
        video = workload.frames is not None
        models = video_models(workload, workload.frames) if workload.frames is not None else image_models(workload)
        model = models[name].to(workload.device)
        if isinstance(model, ConvMAEPretraining | VideoPretraining) and workload.device == "cuda":  # as training does
            dtype = torch.bfloat16 if workload.precision == "bf16" else torch.float32
            model.depthwise_algorithms, _ = fastest_algorithms(model, PATCH_SIZE, torch.device("cuda"), dtype)
        self._model = torch.compile(model, backend=workload.compiler) if workload.compiled else model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, fused=video or name != DENSE)
        frames = () if workload.frames is None else (workload.frames,)
        shape = (workload.batch_size, 3, *frames, *workload.encoder.image_size)
        self._images = torch.randn(shape, generator=torch.Generator().manual_seed(SEED)).to(workload.device)

    def draw_masks(self, turn: int) -> Tensor:
        """Visible cells (B, K) of a round, others each round."""
        workload, generator = self.workload, torch.Generator().manual_seed(SEED + 1 + turn)
        noise = draw_noise(workload.batch_size, workload.encoder.image_size, PATCH_SIZE, generator)
        choose = keep_lowest if workload.frames is None else keep_tubes
        return choose(noise, workload.mask_ratio).to(workload.device)

    def loss(self, turn: int) -> float:
        """The loss on the masks of a round (from 0)."""
        return self._loss(self.draw_masks(turn)).item()

    def _loss(self, kept: Tensor) -> Tensor:
        with torch.autocast(self.workload.device, torch.bfloat16, enabled=self.workload.precision == "bf16"):
            loss: Tensor = self._model(self._images, kept)
        return loss

    def step(self, turn: int) -> float:
        """Seconds of a training step on the masks of a round."""
        kept = self.draw_masks(turn)
        begun = time.perf_counter()
        self._loss(kept).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self.workload.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    def peak_gb(self) -> float:
        """Most memory that this process has used so far; of a GPU what was allocated."""
        if self.workload.device == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        return peak_memory_bytes() / 1e9


class BenchProcess:
    """A `Bench` in a process of its own, from the start to the end of the context.

    On a CPU all but the authors' way with images keep the memory that they free, as our training programs do.
    """

    def __init__(self, workload: Workload, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, workload, name), daemon=True)
        self._process.start()
        other.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def _request(self, method: str, *arguments: int) -> Any:
        try:
            self._connection.send((method, arguments))
            return self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise ConvMAEError(
                f"the process of {self._name} ended with status {self._process.exitcode}; its message is above, or "
                "there is none where memory for all contenders at once was short: lower --batch-size"
            ) from None

    def loss(self, turn: int) -> float:
        """See `Bench`."""
        return float(self._request("loss", turn))

    def step(self, turn: int) -> float:
        """See `Bench`."""
        return float(self._request("step", turn))

    def peak_gb(self) -> float:
        """See `Bench`."""
        return float(self._request("peak_gb"))


Contender = Bench | BenchProcess


def serve(connection: Connection, workload: Workload, name: str) -> None:
    """The program of a contender's process: calls of `Bench` methods come in, results go out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    logging.getLogger("torch").setLevel(logging.ERROR)  # the compiler reports what it does not find
    warnings.simplefilter("ignore")  # its advice about settings and hardware
    if workload.device == "cpu" and (workload.frames is not None or name != DENSE):
        keep_freed_memory()
    bench = Bench(workload, name)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        connection.send(getattr(bench, method)(*arguments))


def check_losses(contenders: Mapping[str, Contender], precision: Precision) -> dict[str, float]:
    """Each contender's loss before its first step, on the same masks.

    Raises:
        ConvMAEError: that of visible cells is not the dense masked one.
    """
    losses = {name: contender.loss(0) for name, contender in contenders.items()}
    for visible, dense in ((VISIBLE, DENSE), (VISIBLE_ENCODER, DENSE_ENCODER)):
        if visible in losses and not abs(losses[visible] / losses[dense] - 1) <= LOSS_TOLERANCE[precision]:
            raise ConvMAEError(
                f"{visible} must give the loss of {dense}, {losses[dense]:.7f}; got {losses[visible]:.7f}: its speed "
                "means nothing"
            )
    return losses


def measure(
    contenders: Mapping[str, Contender], warm_up: int, rounds: int, advance: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of every timed step of each contender; `advance` is called after each round, warm-up included."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warm_up + rounds):
        first = (turn - warm_up) % len(names)
        for name in (*names[first:], *names[:first]):
            taken = contenders[name].step(turn)
            if turn >= warm_up:
                seconds[name].append(taken)
        advance()
    return seconds
