"""Small folders of photos with annotated objects that the detection tests make for themselves."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

DET_COCO = Path(os.environ.get("CONVMAE_DATA", ".")) / "det_coco"  # the pack: part of COCO
needs_det_coco = pytest.mark.skipif(
    "CONVMAE_DATA" not in os.environ, reason="CONVMAE_DATA does not name the folder of the data packs"
)

CATEGORIES = ({"id": 3, "name": "red thing"}, {"id": 7, "name": "blue thing"})  # with gaps, and not from 1 on
WIDTH, HEIGHT = 64, 48  # pixels of every photo


def rectangle(box: tuple[int, int, int, int]) -> list[list[float]]:
    """The polygon around a box (x, y, width, height)."""
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def make_coco_folder(root: Path, *, photos: int = 4) -> Path:
    """Writes root/annotations/instances_{train,val}.json and root/images/{train,val}/<id>.png; returns root.

    Photo k (from 1; ids are 10 k, licences alternate between 1 and 4) has a red rectangle (category 3), and every
    second one a blue one (category 7) beside it, on dark noise.
    """
    for seed, split in enumerate(("train", "val")):
        generator = np.random.default_rng(seed)
        folder = root / "images" / split
        folder.mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(1, photos + 1):
            pixels = generator.integers(0, 60, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
            for category in CATEGORIES[: 2 - number % 2]:
                half = 0 if category["id"] == 3 else WIDTH // 2
                x, y = half + int(generator.integers(0, 8)), int(generator.integers(0, 16))
                width, height = (int(generator.integers(16, 24)) for _ in range(2))
                pixels[y : y + height, x : x + width] = (230, 30, 30) if half == 0 else (30, 30, 230)
                annotations.append(
                    {
                        "id": 100 + len(annotations),
                        "image_id": 10 * number,
                        "category_id": category["id"],
                        "bbox": [x, y, width, height],
                        "area": width * height,
                        "segmentation": rectangle((x, y, width, height)),
                        "iscrowd": 0,
                    }
                )
            Image.fromarray(pixels).save(folder / f"{10 * number}.png")
            images.append(
                {
                    "id": 10 * number,
                    "file_name": f"{10 * number}.png",
                    "width": WIDTH,
                    "height": HEIGHT,
                    "license": 1 if number % 2 else 4,
                }
            )
        content = {"images": images[::-1], "annotations": annotations, "categories": list(CATEGORIES)[::-1]}
        file = annotation_file(root, split)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
    return root


def annotation_file(root: Path, split: str) -> Path:
    """Where the annotations of a split are."""
    return root / "annotations" / f"instances_{split}.json"


def edit_annotations(root: Path, split: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrites the annotations of a split after `change` altered them."""
    file = annotation_file(root, split)
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
