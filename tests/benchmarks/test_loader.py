"""The benchmark of the loader: what it compares is what training uses, and a gate that is missed is said."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import loader as program
from convmae_deploy.bundle.preprocessing import standard_preprocessing
from convmae_deploy.data.augmentation import normalised
from convmae_deploy.data.photo_datasets import seed_sample
from convmae_deploy.data.photo_folder import find_training_photos
from convmae_deploy.media.photo_files import read_photo
from tests.photo_folders import make_photo_folder


@pytest.fixture
def config(tmp_path: Path) -> program.LoaderBenchmark:
    return program.LoaderBenchmark(
        data=make_photo_folder(tmp_path / "photos"), photos=6, image_size=(32, 32), batch_size=4, rounds=1, check=True
    )


def test_what_is_called_exact_is(config: program.LoaderBenchmark) -> None:
    preprocessing = standard_preprocessing(config.image_size)
    transforms = program.contenders(config.image_size, preprocessing)
    photo = read_photo(find_training_photos(config.data)[0]).image
    outputs = {}
    for name, transform in transforms.items():
        seed_sample(1)
        outputs[name] = transform(photo)
    assert torch.equal(outputs[program.BEFORE], normalised(outputs[program.EXACT][None], preprocessing)[0])
    assert outputs[program.ATEN].dtype == torch.uint8


@pytest.mark.parametrize(("seconds", "status"), [((4.0, 2.0, 1.0), 0), ((4.0, 2.0, 3.0), 1)])
def test_a_ratio_below_its_gate_is_named_and_fails(
    config: program.LoaderBenchmark,
    seconds: tuple[float, ...],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    preprocessing = standard_preprocessing(config.image_size)
    transforms = program.contenders(config.image_size, preprocessing)
    taken = dict(zip(transforms.values(), seconds, strict=True))
    monkeypatch.setattr(program, "contenders", lambda *_: transforms)
    monkeypatch.setattr(program, "seconds_of", lambda transform, *_: taken[transform])
    assert program.main(config) == status
    assert ("gate missed: uint8, ATen is 1.33 of float32" in capsys.readouterr().out) == bool(status)


@pytest.mark.slow
def test_all_photos_go_through_a_worker(config: program.LoaderBenchmark) -> None:
    photos = find_training_photos(config.data)
    transform = program.contenders(config.image_size, standard_preprocessing(config.image_size))[program.ATEN]
    assert program.seconds_of(transform, photos, config.batch_size) > 0


def test_levels_are_held_against_each_other_draw_by_draw(config: program.LoaderBenchmark) -> None:
    photos = find_training_photos(config.data)[:2]

    def drawn(_: Image.Image) -> torch.Tensor:
        return torch.randint(0, 100, (3, 4, 4), dtype=torch.uint8)

    def brighter(photo: Image.Image) -> torch.Tensor:
        levels = drawn(photo)
        levels[0] += 4
        return levels

    assert program.differences(photos, drawn, brighter) == pytest.approx((2 / 3, 4 / 3, 4))
