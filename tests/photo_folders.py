"""Small folders of labelled photos that the training tests make for themselves."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_photo_folder(
    root: Path, *, classes: tuple[str, ...] = ("blue", "red"), per_class: int = 6, side: int = 48
) -> Path:
    """Writes root/{train,val}/<class>/<n>.png: noise around a colour of the class; returns root."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                pixels = generator.integers(0, 120, size=(side, side, 3), dtype=np.uint8)
                pixels[..., label % 3] += 120
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root
