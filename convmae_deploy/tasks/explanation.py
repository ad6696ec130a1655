"""Why this class: how much each cell of a photo adds to a logit, where the head stands on the mean over all cells.

It is an additive decomposition of the average pooling, not a cause: a cell has seen its whole surroundings through
convolutions and attention, and what would become of the logit without it is another question.

The head is linear in the cells but for one number, the standard deviation that the LayerNorm divides by. With that held
at its value, logit = bias + sum of what the cells add, exactly:

    mean = (1/N) sum of cells; hidden = scale * (mean - average of mean) / deviation + shift
    logit = weight . hidden + b
    a cell adds (1/N) weight . (scale * (cell - average of cell) / deviation); bias = weight . shift + b

Shapes: D channels of a cell, h w the grid of cells, N = h * w.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.bundle.graphs.head import OtherHead, PooledHead, read_pooled_head
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.preprocessing import Preprocessing, Size
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.base import LOGITS
from convmae_deploy.tasks.preprocess import covering_size

MEANING: Final = "an additive decomposition of the average pooling, not a cause"
CELLS: Final = "e3"  # the output that is averaged
# How far the sum may lie from the runtime's logit, as a share of the largest logit (at least of 1): what float32
# leaves, and what may come of a head in half precision or in whole numbers. Beyond it, the numbers say nothing.
ROUNDING: Final = 1e-4
LARGEST_DIFFERENCE: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What the cells of a photo add to the logit of one class: `contributions.sum() + bias` is the logit."""

    label: str  # of the class
    index: int  # of the class, the first is 0
    contributions: NDArray[np.float32]  # (h, w)
    bias: float  # what the class has on every photo, and the difference
    logit: float  # as the runtime gave it
    difference: float  # of the logit from what the weights make of the cells: how the runtime rounds
    note: str | None = None  # a sentence where the difference is more than float32 leaves
    photo: Image.Image | None = None  # a small copy of the upright photo, to draw on

    @property
    def of_cells(self) -> float:
        """What all cells add."""
        return float(self.contributions.sum(dtype=np.float64))

    def fields(self) -> dict[str, object]:
        """As JSON: the numbers and what they mean."""
        return {
            "label": self.label,
            "index": self.index,
            "logit": self.logit,
            "bias": self.bias,
            "difference": self.difference,
            "contributions": self.contributions.tolist(),
            "meaning": MEANING,
            **({} if self.note is None else {"note": self.note}),
        }


class Explainer:
    """Explains the logits of one model.

    Args:
        bundle: of the model; its first graph says the weights of the head.

    Raises:
        ConvMAEError: the model makes its logits in another way.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._classes, self._name = bundle.manifest.classes, bundle.manifest.name
        try:
            self._head = read_pooled_head(bundle, CELLS, LOGITS)
        except OtherHead as other:
            raise ConvMAEError(
                f"what a cell adds to a class can be said of models whose head stands on the mean over all cells; "
                f"of {self._name}, {other}"
            ) from None

    def explain(
        self,
        outputs: Mapping[str, NDArray[Any]],
        classes: Sequence[int] | None = None,
        photo: Image.Image | None = None,
    ) -> list[Explanation]:
        """What the cells of one photo add to some logits.

        Args:
            outputs: `CELLS` (D, h, w) and `LOGITS` (K,) of one photo, from one run.
            classes: which logits; None: the largest one.
            photo: kept with them.

        Raises:
            ConvMAEError: the runtime's logits are not those of the graph whose weights were read.
        """
        logits = outputs[LOGITS].astype(np.float64)
        chosen = [int(logits.argmax())] if classes is None else classes
        maps, biases = contributions(outputs[CELLS], self._head, chosen)
        largest = max(1.0, float(np.abs(logits).max()))
        found = []
        for index, cells, bias in zip(chosen, maps.astype(np.float32), biases, strict=True):
            logit, of_cells = float(logits[index]), float(cells.sum(dtype=np.float64))
            difference = logit - of_cells - float(bias)
            found.append(
                Explanation(
                    label=self._classes[index],
                    index=index,
                    contributions=cells,
                    bias=logit - of_cells,
                    logit=logit,
                    difference=difference,
                    note=self._note(logit, difference, largest),
                    photo=photo,
                )
            )
        return found

    def _note(self, logit: float, difference: float, largest: float) -> str | None:
        said = f"the weights make {logit - difference:.4f} of the cells, the runtime gave the logit {logit:.4f}"
        if not abs(difference) <= LARGEST_DIFFERENCE * largest:
            raise ConvMAEError(
                f"{said}: {self._name} does not compute what the weights of its first graph say; export it again"
            )
        if abs(difference) <= ROUNDING * largest:
            return None
        return f"{said}: it computes the head with fewer digits, and the difference is in the bias"


def contributions(
    cells: NDArray[Any], head: PooledHead, classes: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each cell adds to the logits of some classes, and what each class has besides.

    Args:
        cells: (D, h, w).
        head: of the model.
        classes: C of them.

    Returns:
        (C, h, w) and (C,).
    """
    weight, bias = head.weight[list(classes)], head.bias[list(classes)]  # (C, D), (C,)
    values = cells.astype(np.float64)
    if head.norm is not None:
        values = values - values.mean(axis=0)  # of each cell over its channels; the mean of these is the centred mean
        deviation = np.sqrt(np.square(values.mean(axis=(1, 2))).mean() + head.norm.epsilon)
        bias = bias + weight @ head.norm.shift
        weight = weight * head.norm.scale / deviation
    maps = np.tensordot(weight, values, axes=1) / values[0].size  # (C, h, w)
    return maps, bias


def find_class(classes: Sequence[str], wanted: str) -> int:
    """The class of that name, or of that number where none is called so; the first is 0.

    Raises:
        ConvMAEError: there is none, or several have that name.
    """
    places = [index for index, name in enumerate(classes) if name == wanted]
    if len(places) == 1:
        return places[0]
    if places:
        numbers = ", ".join(map(str, places[:10]))
        raise ConvMAEError(f"{len(places)} classes are called {wanted}; give the number of one of them: {numbers}")
    # Thousands of digits are no number that Python reads.
    if wanted.isascii() and wanted.isdigit() and len(wanted) <= len(str(len(classes))) and int(wanted) < len(classes):
        return int(wanted)
    shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    raise ConvMAEError(f"expected one of {len(classes)} classes ({shown}), or a number from 0; got {wanted[:80]!r}")


def seen_box(photo: Size, spec: Preprocessing) -> tuple[float, float, float, float]:
    """What a model sees of a photo: left, top, right, bottom in pixels of the upright photo.

    Args:
        photo: its (height, width).
        spec: how it becomes the model's input.
    """
    width, height = covering_size((photo[1], photo[0]), spec.resize)
    left, top = round((width - spec.crop[1]) / 2), round((height - spec.crop[0]) / 2)
    across, down = photo[1] / width, photo[0] / height
    return left * across, top * down, (left + spec.crop[1]) * across, (top + spec.crop[0]) * down
