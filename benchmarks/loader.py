"""How many photos a second does a core decode and augment for pretraining, by what the workers hand over?

    python -m benchmarks.loader --data photos/ [--image-size 224 224] [--rounds N] [--check]

The same photos through a DataLoader with one worker, in three ways, in an order that rotates from round to round:

- float32: timm's transform, which the worker normalises, as the authors' code does;
- uint8: the same crops by Pillow; the levels 0 to 255 are handed over and normalised on the device, bit for bit equal;
- uint8, ATen: the same crops resized by ATen, which is pretraining's default.

What is compared is CPU time, of the worker and of the process that takes its batches, so that other work on the machine
changes little; without the normalisation, which a GPU does, and which is printed for a CPU as a line of its own.
"""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
import tyro
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader

from convmae_deploy.bundle.preprocessing import Preprocessing, standard_preprocessing
from convmae_deploy.data.augmentation import AugmentationConfig, crop_transform, normalised, training_transform
from convmae_deploy.data.photo_datasets import MaskedPhotos, collate_readable, seed_sample
from convmae_deploy.data.photo_folder import find_training_photos
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.machine import processor
from convmae_deploy.media.photo_files import read_photo
from convmae_deploy.program import run_program

AUGMENTATION = AugmentationConfig(
    crop_scale=(0.2, 1.0), rand_augment=None, random_erasing=0.0, mixup=0.0, cutmix=0.0
)  # pretraining's
COMPARED = 200  # photos whose levels are held against each other
CELLS = 196  # of the masks that are drawn beside
BEFORE, EXACT, ATEN = "float32", "uint8", "uint8, ATen"
GATES = {EXACT: 1.35, ATEN: 2.0}  # least ratio of the photos a second and core to those of float32

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True, kw_only=True)
class LoaderBenchmark:
    """Measures what pretraining's workers cost."""

    data: Path  # folder of photos
    photos: int = 2048  # in each round, some of them several times where there are fewer
    image_size: tuple[int, int] = (224, 224)  # (height, width) in pixels
    batch_size: int = 64
    rounds: int = 5
    check: bool = False  # exit with status 1 where a gate is missed

    def __post_init__(self) -> None:
        if min(self.photos, self.batch_size, self.rounds) < 1:
            raise ConvMAEError("--photos, --batch-size and --rounds must be at least 1")


def contenders(image_size: tuple[int, int], preprocessing: Preprocessing) -> dict[str, Transform]:
    """What each worker does with a photo."""
    timms = create_transform(
        input_size=image_size,
        is_training=True,
        scale=AUGMENTATION.crop_scale,
        hflip=AUGMENTATION.flip,
        color_jitter=0.0,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    ours = (make(AUGMENTATION, image_size, preprocessing) for make in (training_transform, crop_transform))
    return dict(zip((BEFORE, EXACT, ATEN), (timms, *ours), strict=True))


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def seconds_of(transform: Transform, photos: Sequence[Path], batch_size: int) -> float:
    """CPU seconds for all photos, the start of the worker included."""
    keys = [(0, index) for index in range(len(photos))]
    batches = [keys[first : first + batch_size] for first in range(0, len(keys), batch_size)]
    samples = MaskedPhotos(photos, transform, 0, cells=CELLS)
    began = cpu_seconds()
    loader = DataLoader(samples, batch_sampler=batches, num_workers=1, collate_fn=collate_readable)
    seen = sum(len(images) + unreadable for images, _, unreadable in loader)
    assert seen == len(photos)
    del loader  # waits for the worker
    return cpu_seconds() - began


def differences(photos: Sequence[Path], exact: Transform, other: Transform) -> tuple[float, float, int]:
    """Share of equal levels, mean and largest difference in levels, of the same draws of both."""
    equal, summed, levels, largest = 0, 0, 0, 0
    for number, file in enumerate(photos):
        photo = read_photo(file).image
        outputs = []
        for transform in (exact, other):
            seed_sample(number)
            outputs.append(transform(photo).int())
        apart = (outputs[0] - outputs[1]).abs()
        equal, summed, levels = equal + int((apart == 0).sum()), summed + int(apart.sum()), levels + apart.numel()
        largest = max(largest, int(apart.max()))
    return equal / levels, summed / levels, largest


def main(config: LoaderBenchmark) -> int:
    """Measures, prints, and says whether the gates hold."""
    torch.set_num_threads(1)
    found = find_training_photos(config.data)
    photos = [found[index % len(found)] for index in range(config.photos)]
    preprocessing = standard_preprocessing(config.image_size)
    transforms = contenders(config.image_size, preprocessing)
    names = list(transforms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, config.rounds):
        for place in range(len(names)):
            name = names[(number + place) % len(names)]
            taken = seconds_of(transforms[name], photos, config.batch_size)
            if number >= 0:  # the first round only warms up
                seconds[name].append(taken)
    print(f"machine {processor()}; {config.photos} photos a round, {len(found)} files, {config.rounds} rounds")
    missed = []
    for name in names:
        spent = median(seconds[name])
        ratio = median(before / own for before, own in zip(seconds[BEFORE], seconds[name], strict=True))
        gate = GATES.get(name)
        print(
            f"{name:<12} {1000 * spent / config.photos:5.2f} ms a photo, {config.photos / spent:5.0f} photos/s a core, "
            f"{ratio:.2f} of {BEFORE}" + ("" if gate is None else f" (gate {gate:g})")
        )
        if gate is not None and ratio < gate:
            missed.append(f"gate missed: {name} is {ratio:.2f} of {BEFORE}, at least {gate:g} is wanted")
    unflipped = replace(AUGMENTATION, flip=0.0)  # timm draws for its colours before it draws for its flip
    pair = (make(unflipped, config.image_size, preprocessing) for make in (training_transform, crop_transform))
    share, mean, most = differences(found[:COMPARED], *pair)
    equal = f"{100 * share:.1f} % of the levels are equal"
    print(f"{ATEN} against Pillow: {equal}, {mean:.2f} apart in the mean, {most} at most")
    levels = torch.zeros(config.batch_size, 3, *config.image_size, dtype=torch.uint8)
    began = time.process_time()
    for _ in range(10):
        normalised(levels, preprocessing)
    print(f"normalised on a CPU: {100 * (time.process_time() - began) / config.batch_size:.2f} ms a photo")
    print(*missed, sep="\n", end="\n" if missed else "")
    return 1 if config.check and missed else 0


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(LoaderBenchmark, prog="python -m benchmarks.loader", description=__doc__)))
