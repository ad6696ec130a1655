"""Features of photos computed once and kept in a folder, on any number of processes.

Shapes: n photos, B of them at once, D width of a feature.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convmae_deploy.data.features import Features, has_features, write_features
from convmae_deploy.data.photo_datasets import LabelledSample
from convmae_deploy.data.photo_folder import PhotoFolder
from convmae_deploy.data.sources import loaded
from convmae_deploy.data.unreadable import Unreadable
from convmae_deploy.data.workers import leave_signals_to_parent
from convmae_deploy.engine.progress import Lines, progress_bar
from convmae_deploy.engine.training_run import any_process


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """A folder of features. Every node has one, should nodes share no disk; the processes of a node share it."""

    folder: Path
    accelerator: Accelerator
    features: Callable[[Tensor], Tensor]  # images (B, 3, H, W) on the device to features (B, D) float32
    width: int  # D
    made_of: Mapping[str, Any]  # all that features depend on besides the photos, as JSON: weights, transform, seed, ...
    batch_size: int  # photos at once, on each process
    workers: int  # decoding processes, of each process
    console: Console

    def computed(
        self, name: str, dataset: Dataset[LabelledSample | Unreadable], keys: Sequence[Any], photos: str
    ) -> Path:
        """The file of these features, computed unless it is there already; all processes must ask for it.

        Args:
            name: of the file, without ending.
            dataset: gives the image of a key, or `Unreadable`.
            keys: of all n photos.
            photos: `photos_digest` of them.
        """
        path = self.folder / f"{name}.safetensors"
        key = digest({"name": name, "photos": photos} | dict(self.made_of))
        if any_process(self.accelerator, not has_features(path, key)):  # on any node: then all take part
            features = self._compute(name, dataset, keys)
            if self.accelerator.is_local_main_process:
                write_features(path, features, key)
            self.accelerator.wait_for_everyone()
        return path

    @torch.no_grad()
    def _compute(self, name: str, dataset: Dataset[LabelledSample | Unreadable], keys: Sequence[Any]) -> Features:
        """Every process computes each world_size-th photo; all get all."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        as_many_for_all = range(rank, -(-len(keys) // world) * world, world)
        own = [keys[min(index, len(keys) - 1)] for index in as_many_for_all]
        loader = DataLoader(
            dataset,
            self.batch_size,
            sampler=own,
            num_workers=self.workers,
            collate_fn=_collate_marked,
            worker_init_fn=leave_signals_to_parent,
        )
        parts, done, lines = [], 0, Lines(self.console)
        unreadable: list[Unreadable] = []
        with progress_bar(self.console, "{task.description}", "{task.completed}/{task.total} photos") as bar:
            task = bar.add_task(f"features {name}", total=len(own))
            for images, readable, others in loaded(loader):
                unreadable += others
                part = self.accelerator.gather(self._marked_features(images, readable))  # process after process
                parts.append(part.reshape(world, len(readable), -1).transpose(0, 1).flatten(0, 1).cpu())
                bar.update(task, advance=len(readable))
                done += len(readable)
                lines.tell(f"features {name}: {done}/{len(own)} photos")
        marked = torch.cat(parts)[: len(keys)]  # (n, D + 1)
        unreadable = sorted(set(gather_object(unreadable)))
        if unreadable:
            file, reason = unreadable[0]
            words = f"{len(unreadable)} of {len(keys)} photos could not be decoded, the first {file}: {reason}"
            self.console.print(words, markup=False)
        return Features(values=marked[:, :-1].contiguous(), readable=marked[:, -1] > 0)

    def _marked_features(self, images: Tensor, readable: Tensor) -> Tensor:
        """(B, D + 1): the features, zeros for unreadable photos, and in the last column whether it was readable."""
        readable = readable.to(self.accelerator.device)
        marked = torch.zeros(len(readable), self.width + 1, device=self.accelerator.device)
        marked[:, -1] = readable
        if len(images):
            marked[readable, :-1] = self.features(images.to(self.accelerator.device))
        return marked


def digest(content: Any) -> str:
    """SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names and bytes of weights."""
    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def photos_digest(folder: PhotoFolder, root: Path) -> str:
    """SHA-256 of where the photos are below `root`, their sizes and times; their content is not read."""
    return digest([(photo.relative_to(root).as_posix(), *_size_and_time(photo)) for photo in folder.photos])


def _size_and_time(photo: Path) -> tuple[int, int]:
    try:
        status = photo.stat()
    except OSError:
        return 0, 0  # a broken link is an unreadable photo, as everywhere
    return status.st_size, status.st_mtime_ns


def _collate_marked(samples: Sequence[LabelledSample | Unreadable]) -> tuple[Tensor, Tensor, list[Unreadable]]:
    """Images (R, 3, H, W) of the readable samples, which of the B are (B,), and those that are not."""
    images = [sample[0] for sample in samples if not isinstance(sample, Unreadable)]
    unreadable = [sample for sample in samples if isinstance(sample, Unreadable)]
    readable = torch.tensor([not isinstance(sample, Unreadable) for sample in samples])
    return torch.stack(images) if images else torch.empty(0), readable, unreadable
