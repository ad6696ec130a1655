"""Small made photos and videos for every training program, and every program's way to its first update."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convmae_deploy.engine.training_loop import TrainingLoop
from tests.coco_folders import edit_annotations, make_coco_folder, rectangle
from tests.photo_folders import make_photo_folder
from tests.segmentation_folders import make_segmentation_folder
from tests.video_folders import make_motion_folder
from training import detect, finetune, linprobe, pretrain, segment, video_finetune, video_pretrain

ODD_SIZES = ((1, 1), (1, 60), (200, 2), (3, 5))  # (height, width) in pixels

PREPARE: dict[str, Callable[[Any], TrainingLoop]] = {
    "pretrain": pretrain.prepare,
    "finetune": finetune.prepare,
    "linprobe": linprobe.prepare,
    "detect": detect.prepare,
    "segment": segment.prepare,
    "video_pretrain": video_pretrain.prepare,
    "video_finetune": video_finetune.prepare,
}


@dataclass(frozen=True)
class Media:
    """Folders of made photos and videos, some of odd sizes."""

    photos: Path
    coco: Path
    segmentation: Path
    videos: Path

    def of(self, program: str) -> Path:
        """The data of a training program."""
        if program.startswith("video"):
            return self.videos
        return {"detect": self.coco, "segment": self.segmentation}.get(program, self.photos)


def make_media(root: Path) -> Media:
    """Eight photos or videos to train on of each kind; of the photos four are one pixel wide, high or little more."""
    photos = make_photo_folder(root / "photos", per_class=2)
    coco = make_coco_folder(root / "coco", photos=4)
    segmentation = make_segmentation_folder(root / "segmentation", train=4, val=2)
    videos = make_motion_folder(root / "videos", train=4, val=1)
    for number, (height, width) in enumerate(ODD_SIZES):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        photo = Image.fromarray(pixels)
        photo.save(photos / "train" / "red" / f"odd-{number}.png")
        photo.save(segmentation / "images" / "train" / f"odd-{number}.png")
        Image.fromarray(pixels[..., 0] % 3).save(segmentation / "labels" / "train" / f"odd-{number}.png")
        photo.save(coco / "images" / "train" / f"odd-{number}.png")
        edit_annotations(coco, "train", lambda content, n=number, h=height, w=width: annotate(content, n, h, w))  # type: ignore[misc]
    return Media(photos, coco, segmentation, videos)


def annotate(content: dict[str, Any], number: int, height: int, width: int) -> None:
    """Adds a photo that one object fills."""
    content["images"].append({"id": 1000 + number, "file_name": f"odd-{number}.png", "width": width, "height": height})
    content["annotations"].append(
        {
            "id": 1000 + number,
            "image_id": 1000 + number,
            "category_id": 3,
            "bbox": [0, 0, width, height],
            "area": width * height,
            "segmentation": rectangle((0, 0, width, height)),
            "iscrowd": 0,
        }
    )
