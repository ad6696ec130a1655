"""Parameters and multiply-adds of every model and task, beside the figures of the paper.

    python -m benchmarks.sizes                # half a minute; all tables, as Markdown
    python -m benchmarks.sizes --tables 2 5   # of these alone

Models have shapes and no numbers (PyTorch's meta device), so that neither memory nor data are needed. Multiply-adds are
those of matrix products, convolutions and attention in a forward pass of one image or clip. They are what the paper
calls FLOPs: its 0.9T and 0.6T are met by them and not by twice as many.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import tyro
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.dense_masked import DenseMaskedPretraining
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import build_classifier, build_video_classifier
from convmae_deploy.models.convmae import MODELS, ConvMAEConfig, base
from convmae_deploy.models.detector import DETECTORS, ConvMAEDetector, build_detector
from convmae_deploy.models.masking import MASKING, MaskingName, visible_cells
from convmae_deploy.models.pretraining import PretrainingConfig, build_pretraining
from convmae_deploy.models.roi_heads import BOX_SIZE, MASK_SIZE, MAX_DETECTIONS
from convmae_deploy.models.segmenter import SegmenterConfig, authors_dense, build_segmenter
from convmae_deploy.models.video import VideoConfig
from convmae_deploy.models.vit import VITS
from convmae_deploy.program import run_program

PROPOSALS = 1000  # of an image, that the box head sees in the authors' validation
CLASSES = {"photos": 1000, "COCO": 80, "ADE20K": 150, "Kinetics": 400}
WINDOW = (512, 512)  # pixels, of the segmenter

# What the paper prints, and why ours differs where it does.
TABLE_7 = {"small": "22M", "base": "84M; Table 1: 88M", "base_plus": "88M", "large": "322M", "huge": "666M"}
ABOUT_CLASSIFIERS = {
    "base": "Table 1 prints 88M, which is B*, for what the code and Table 7 have as B",
    "huge": "by Table 7's own widths and depths; with MLP ratios of 4 it would be 653M: unexplained",
    "vit_base": "MAE's, in Table 1 as 88M; without a class token",
}
ABOUT_DETECTORS = {
    "base_fpn": "3.15M are the frozen position embedding; 3.0M remain unexplained",
    "base_fpn_shifted": "as the paper describes the windows; the code behind its weights has neither",
}
ABOUT_TABLE_5 = {
    "1x1": "row 4 has the marks of row 1 and this cost; what it is the paper does not say",
    "3x3": "so that it is not row 4",
    "random stage-1 tokens": "every stage-3 token is then visible; the authors' code has no such masks",
}


@dataclass(frozen=True, kw_only=True)
class SizesConfig:
    """Prints parameters and multiply-adds of every model, beside the paper's."""

    tables: tuple[int, ...] = (7, 5, 2, 3)  # of the paper; 7 and 1 are one, and the models of videos stand there too

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tables) - set(TABLES)):
            raise ConvMAEError(f"--tables must be among {', '.join(map(str, TABLES))}; got {unknown[0]}")


def multiply_adds(run: Callable[..., object], *inputs: object) -> float:
    """Of `run(*inputs)`, in thousands of millions."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(*inputs)
    return float(counter.get_total_flops()) / 2e9


def millions(model: nn.Module) -> float:
    """Its parameters, fixed position embeddings included."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def classifiers() -> Iterator[list[str]]:
    """Tables 1 and 7, and models of videos."""
    yield ["model", "parameters", "with its classes", "paper", "10^9 multiply-adds", "at", ""]
    for name, config in ((name, build()) for name, build in (MODELS | VITS).items()):
        model = build_classifier(config, num_classes=CLASSES["photos"])
        height, width = config.image_size
        cost = multiply_adds(model, torch.zeros(1, 3, height, width))
        bare = millions(model) - millions(model.head)
        yield [
            *(name, f"{bare:.2f}M", f"{millions(model):.2f}M", TABLE_7.get(name, "")),
            *(f"{cost:.2f}", f"{height} x {width}", ABOUT_CLASSIFIERS.get(name, "")),
        ]
    video = VideoConfig()
    clips = build_video_classifier(base(), video, num_classes=CLASSES["Kinetics"])
    cost = multiply_adds(clips, torch.zeros(1, 3, video.frames, 224, 224))
    bare = millions(clips) - millions(clips.head)
    yield [
        *("base, videos", f"{bare:.2f}M", f"{millions(clips):.2f}M", "86M (README)"),
        *(f"{cost:.2f}", f"{video.frames} x 224 x 224", "1.20M are the position table, which is not trained"),
    ]


def pretraining_costs() -> Iterator[list[str]]:
    """Table 5: what a variation costs a forward pass, dense as the authors compute it, and as we do."""
    yield ["ConvMAE-B, pretraining", "paper", "dense, as the authors", "10^9 multiply-adds", "ours", "10^9", ""]
    rows: list[tuple[str, str, ConvMAEConfig, MaskingName, bool]] = [
        ("block masks, masked 5x5 convolution", "1x", base(), "block", True),
        ("random stage-1 tokens", "1.7x", base(), "token", True),
        ("no masked convolution", "", base(), "block", False),
        ("1x1", "0.997x (row 4)", replace(base(), kernel_size=1), "block", True),
        ("3x3", "", replace(base(), kernel_size=3), "block", True),
        ("7x7", "1.003x", replace(base(), kernel_size=7), "block", True),
        ("9x9", "1.007x", replace(base(), kernel_size=9), "block", True),
    ]
    first: tuple[float, float] | None = None
    for name, paper, config, masking, masked in rows:
        found = dense_cost(config, masking), own_cost(config, masking, masked)
        first = first or found
        dense, ours = (f"{cost / reference:.3f}x" for cost, reference in zip(found, first, strict=True))
        about = ABOUT_TABLE_5.get(name, "")
        yield [name, paper, dense, f"{found[0]:.2f}", ours, f"{found[1]:.2f}", about]


def dense_cost(config: ConvMAEConfig, masking: MaskingName) -> float:
    """As the authors' code computes it: stages 1 and 2 whole, stage 3 on the tokens that hold visible pixels."""
    model = DenseMaskedPretraining(build_pretraining(config, PretrainingConfig()))
    cells = config.grid_size[0] * config.grid_size[1]
    seen = cells if masking == "token" else visible_cells(cells, 0.75)
    return multiply_adds(model, torch.zeros(1, 3, *config.image_size), torch.zeros(1, seen, dtype=torch.int64))


def own_cost(config: ConvMAEConfig, masking: MaskingName, masked: bool) -> float:
    """As our programs compute it."""
    model = build_pretraining(config, PretrainingConfig(masking=masking, masked_convolution=masked))
    side = MASKING[masking].cell_size
    cells = config.image_size[0] // side * (config.image_size[1] // side)
    kept = torch.zeros(1, visible_cells(cells, 0.75), dtype=torch.int64)
    return multiply_adds(model, torch.zeros(1, 3, *config.image_size), kept)


def detectors() -> Iterator[list[str]]:
    """Table 2: Mask R-CNN with COCO's classes."""
    yield ["detector", "parameters", "paper", "10^9 multiply-adds", "paper", "at", ""]
    for name, build in DETECTORS.items():
        config, heads = build()
        model = build_detector(config, heads, num_classes=CLASSES["COCO"]).eval()
        cost = multiply_adds(detect, model, config.input_size)
        paper = ("104M", "900") if name == "base_fpn" else ("", "")
        size = "{} x {}".format(*config.input_size)
        yield [name, f"{millions(model):.2f}M", paper[0], f"{cost:.0f}", paper[1], size, ABOUT_DETECTORS.get(name, "")]


def detect(model: ConvMAEDetector, size: tuple[int, int]) -> None:
    """What an image costs, without choosing among the boxes: that takes numbers and no multiply-adds."""
    levels = model.pyramid(model.encoder(torch.zeros(1, 3, *size)))
    model.rpn.head(list(levels))
    channels, heads = levels[0].shape[1], model.roi_heads
    heads.box_predictor(heads.box_head(torch.zeros(PROPOSALS, channels, BOX_SIZE, BOX_SIZE)))
    heads.mask_predictor(heads.mask_head(torch.zeros(MAX_DETECTIONS, channels, MASK_SIZE, MASK_SIZE)))


def segmenters() -> Iterator[list[str]]:
    """Table 3: UperNet with ADE20K's classes."""
    yield ["segmenter", "parameters", "in use", "paper", "10^9 multiply-adds", "paper", "at", ""]
    forms = {
        "base, the authors' code": (authors_dense(), SegmenterConfig(e4="convolution"), "5.31M make E4"),
        "base, E4 max-pooled": (authors_dense(), SegmenterConfig(e4="maxpool"), "what the paper counts"),
        "base, the paper's text": (base().dense, SegmenterConfig(e4="maxpool"), "stage 3 without relative positions"),
    }
    for name, (dense, heads, about) in forms.items():
        config = replace(base(), image_size=WINDOW, dense=dense)
        model = build_segmenter(config, heads, num_classes=CLASSES["ADE20K"]).eval()
        used = millions(model) - millions(model.auxiliary_head)
        cost = multiply_adds(model, torch.zeros(1, 3, *WINDOW))
        size = "{} x {}".format(*WINDOW)
        yield [name, f"{millions(model):.2f}M", f"{used:.2f}M", "153M", f"{cost:.0f}", "600", size, about]


TABLES: dict[int, tuple[str, Callable[[], Iterator[list[str]]]]] = {
    7: ("Tables 1 and 7: classifiers", classifiers),
    5: ("Table 5: what a variation costs pretraining", pretraining_costs),
    2: ("Table 2: detection", detectors),
    3: ("Table 3: segmentation", segmenters),
}
DECODER_HEADS = (
    "The paper's decoder has 12 heads and 512 channels; 12 does not divide 512, and the authors' code has 16, as have "
    "the presets."
)


def print_sizes(config: SizesConfig) -> None:
    """Prints the tables asked for."""
    for number in config.tables:
        title, rows = TABLES[number]
        with torch.device("meta"):
            head, *body = rows()
        lines = [head, ["---"] * len(head), *body]
        print(f"{title}\n", *("| " + " | ".join(cells) + " |" for cells in lines), "", sep="\n")
    if 5 in config.tables:
        print(DECODER_HEADS)


def main() -> None:
    """Command line."""
    print_sizes(tyro.cli(SizesConfig, prog="python -m benchmarks.sizes"))


if __name__ == "__main__":
    run_program(main)
