"""A detector that sees the coloured rectangles of `tests.coco_folders`; as a program, its metrics on several processes.

python -m torch.distributed.run --nproc-per-node 2 -m tests.engine.colour_detector FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from convmae_deploy.bundle.preprocessing import Letterbox
from convmae_deploy.data.coco import read_coco_split
from convmae_deploy.data.detection_datasets import EvaluationDetections
from convmae_deploy.engine.detection import evaluate_detector

SPEC = Letterbox(size=(128, 128))  # twice the photos' size, padded below


class ColourDetector(nn.Module):
    """Finds what is red (label 0) and what is blue (label 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(SPEC.mean).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(SPEC.std).reshape(3, 1, 1))

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        assert not self.training
        return [self.find(image * self.std + self.mean) for image in images]

    def find(self, pixels: Tensor) -> dict[str, Tensor]:
        """Boxes around the pixels of a colour, and the whole box as the mask."""
        boxes, labels = [], []
        for label, channel in enumerate((0, 2)):
            rows, columns = (pixels[channel] - pixels[1] > 0.4).nonzero().T
            if len(rows):
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                labels.append(label)
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "scores": torch.full((len(boxes),), 0.9),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "masks": torch.ones(len(boxes), 28, 28),
        }


if __name__ == "__main__":
    accelerator = Accelerator(cpu=True)
    photos = EvaluationDetections(read_coco_split(Path(sys.argv[1]), "val"), SPEC)
    result = evaluate_detector(ColourDetector(), photos, accelerator, batch_size=2, workers=0)
    if accelerator.process_index == accelerator.num_processes - 1:  # what the main process computed is known to all
        print(json.dumps({"scores": result.scores, "images": result.images, "unreadable": result.unreadable}))
    accelerator.end_training()
