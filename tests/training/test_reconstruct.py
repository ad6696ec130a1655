"""The reconstruction program: its losses are the model's, its picture is written, and bad input is one sentence."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from convmae_deploy.bundle.preprocessing import standard_preprocessing
from convmae_deploy.checkpoints import CheckpointRecord, load_pretraining, save_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import MODELS, ConvMAEConfig, build_convmae
from convmae_deploy.models.masking import MASKING, MaskingName
from convmae_deploy.models.pretraining import PretrainingConfig, build_pretraining
from convmae_deploy.tasks.preprocess import preprocess
from tests.original_files import write_pth
from training import reconstruct as program

CONFIG = ConvMAEConfig(embed_dims=(8, 8, 16), depths=(1, 1, 1), mlp_ratios=(1, 1, 1), num_heads=2, image_size=(64, 64))


def save_model(directory: Path, masking: MaskingName = "block") -> Path:
    torch.manual_seed(0)
    decoder = PretrainingConfig(
        decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_mlp_ratio=2.0, masking=masking, mask_ratio=0.5
    )
    record = CheckpointRecord(kind="pretraining", variant="custom", model=CONFIG, pretraining=decoder)
    save_checkpoint(directory, build_pretraining(CONFIG, decoder).state_dict(), record)
    return directory


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_model(tmp_path / "checkpoint")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", 3)


def make_photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        pixels = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((120, 90)).save(folder / f"{index:02}.png")
    return folder


def config(checkpoint: Path, *photos: Path, out: Path, **changes: object) -> program.ReconstructConfig:
    return program.ReconstructConfig(checkpoint=checkpoint, photos=photos, out=out, **changes)  # type: ignore[arg-type]


def printed_losses(output: str) -> list[float]:
    """The loss of each photo, then the mean."""
    return [float(value) for value in re.findall(r"loss (\d+\.\d+)$", output, re.MULTILINE)]


def images_of(folder: Path, size: tuple[int, int]) -> Tensor:
    files = sorted(folder.iterdir())
    return torch.stack(
        [torch.from_numpy(preprocess(Image.open(file).convert("RGB"), standard_preprocessing(size))) for file in files]
    )


@pytest.mark.parametrize("masking", ["block", "complementary", "token"])
def test_the_losses_are_those_of_the_model_with_masks_from_the_seed(
    masking: MaskingName, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_model(tmp_path / masking, masking)
    program.reconstruct(config(checkpoint, photos, out=tmp_path / "out.png", seed=5))
    output = capsys.readouterr().out
    model, images = load_pretraining(checkpoint)[0], images_of(photos, (64, 64))
    strategy = MASKING[masking]
    cells = (64 // strategy.cell_size) ** 2
    kept = strategy.choose(torch.rand(3, cells, generator=torch.Generator().manual_seed(5)), 0.5)
    assert kept.shape == (3 * (2 if masking == "complementary" else 1), cells // 2)
    with torch.no_grad():
        whole = model(images, kept).item()
        second = model(images[1:2], kept[1::3]).item()
    losses = printed_losses(output)
    assert losses[3] == pytest.approx(whole, abs=2e-4)
    assert losses[1] == pytest.approx(second, abs=1e-4)
    assert [line.split(": ")[0] for line in output.splitlines()[:3]] == [str(photos / f"0{i}.png") for i in range(3)]


@pytest.mark.slow
def test_the_picture_follows_from_the_seed(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        program.reconstruct(config(checkpoint, photos, out=tmp_path / "made" / f"{name}.png", seed=seed))
    pictures = [Image.open(tmp_path / "made" / f"{name}.png") for name in "abc"]
    assert pictures[0] == pictures[1] != pictures[2]
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["a.png", "b.png", "c.png"]


def test_the_mask_ratio_and_the_image_size_can_be_changed(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    program.reconstruct(config(checkpoint, photos / "00.png", out=out, mask_ratio=0.9, image_size=(96, 128)))
    model = load_pretraining(checkpoint, image_size=(96, 128))[0]
    kept = MASKING["block"].choose(torch.rand(1, 48, generator=torch.Generator().manual_seed(0)), 0.9)
    assert kept.shape == (1, 4)
    with torch.no_grad():
        expected = model(images_of(photos, (96, 128))[:1], kept).item()
    assert printed_losses(capsys.readouterr().out)[0] == pytest.approx(expected, abs=1e-4)
    masked = np.asarray(Image.open(out))[20 : 20 + 96, 4 + 132 : 4 + 132 + 128]
    assert (masked == 128).all(axis=2).mean() == pytest.approx(44 / 48, abs=0.01)


@pytest.mark.slow
def test_no_more_than_sixteen_photos_are_drawn_and_a_sentence_says_so(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = make_photos(tmp_path / "many", 18)
    program.reconstruct(config(checkpoint, many / "17.png", many, out=tmp_path / "out.png"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "drawing the first 16 of 19 photos"
    assert lines[1].startswith(f"{many / '17.png'}: ") and lines[16].startswith(f"{many / '14.png'}: ")
    assert len(printed_losses("\n".join(lines))) == 17


def test_an_original_pretraining_file_is_taken_as_it_is(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "nano", lambda: CONFIG)
    model = build_pretraining(CONFIG, PretrainingConfig(decoder_width=16, decoder_depth=1, decoder_heads=2))
    state = {name.removeprefix("encoder."): value for name, value in model.state_dict().items()}
    source = write_pth(tmp_path / "original.pth", {"model": state})
    program.reconstruct(config(source, photos, out=tmp_path / "out.png"))
    output = capsys.readouterr().out
    assert "assumed decoder_heads 2, as in the encoder: the file does not hold it" in output.splitlines()
    assert len(printed_losses(output)) == 4


def refusal(tmp_path: Path, config: program.ReconstructConfig) -> str:
    """The sentence that refuses a request, which leaves no file behind."""
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ConvMAEError) as error:
        program.reconstruct(config)
    assert set(tmp_path.rglob("*")) == before
    return str(error.value)


def test_a_checkpoint_that_is_no_pretraining_model_is_refused(photos: Path, tmp_path: Path) -> None:
    record = CheckpointRecord(kind="features", variant="custom", model=CONFIG)
    save_checkpoint(tmp_path / "encoder", build_convmae(CONFIG).state_dict(), record)
    out = tmp_path / "out.png"
    assert "must hold a pretraining model" in refusal(tmp_path, config(tmp_path / "encoder", photos, out=out))
    assert "found neither" in refusal(tmp_path, config(tmp_path / "absent", photos, out=out))
    source = write_pth(tmp_path / "encoder.pth", build_convmae(MODELS["nano"]()).state_dict())
    assert "encoder.pth must hold a pretraining model" in refusal(tmp_path, config(source, photos, out=out))


def test_photos_that_are_absent_or_no_photos_are_refused_by_name(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    out, empty = tmp_path / "out.png", tmp_path / "empty"
    empty.mkdir()
    (photos / "zz.png").write_text("no photo")
    assert refusal(tmp_path, config(checkpoint, photos, out=out)).startswith(f"{photos / 'zz.png'}: ")
    assert "absent.png: the file cannot be read" in refusal(
        tmp_path, config(checkpoint, tmp_path / "absent.png", out=out)
    )
    assert "found none" in refusal(tmp_path, config(checkpoint, empty, out=out))
    with pytest.raises(ConvMAEError, match="at least one photo"):
        config(checkpoint, out=out)


def test_an_output_that_cannot_be_made_is_refused(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    assert "cannot be made" in refusal(tmp_path, config(checkpoint, photos, out=tmp_path / "file" / "out.png"))
    for name in ("out.jpg", "out", "folder.png"):
        with pytest.raises(ConvMAEError, match="--out must be a picture to write, ending in .png"):
            config(checkpoint, photos, out=tmp_path / name)


def test_a_photo_is_not_overwritten_by_what_is_drawn_of_it(checkpoint: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photos" / "a.png"
    photo.parent.mkdir()
    Image.new("RGB", (64, 64), "red").save(photo)
    before = photo.read_bytes()
    assert "--out must be another file than the photos" in refusal(
        tmp_path, config(checkpoint, photo.parent, out=tmp_path / "photos" / ".." / "photos" / "a.png")
    )
    assert photo.read_bytes() == before


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, float("nan")])
def test_a_mask_ratio_that_hides_nothing_or_all_is_refused(ratio: float, tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="--mask-ratio must be between 0 and 1"):
        config(tmp_path, tmp_path, out=tmp_path / "out.png", mask_ratio=ratio)


def test_masks_and_sizes_that_do_not_fit_are_refused(photos: Path, tmp_path: Path) -> None:
    checkpoint, out = save_model(tmp_path / "complementary", "complementary"), tmp_path / "out.png"
    assert "visible share of 1/k" in refusal(tmp_path, config(checkpoint, photos, out=out, mask_ratio=0.7))
    with pytest.raises(ConvMAEError, match="multiples of 32, at most 4096; got 64 x 65"):
        config(checkpoint, photos, out=out, image_size=(64, 65))
    with pytest.raises(ConvMAEError, match="--seed must be between"):
        config(checkpoint, photos, out=out, seed=-1)


def test_the_flags_are_these(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["reconstruct", "--help"])
    with pytest.raises(SystemExit):
        program.main()
    output = capsys.readouterr().out
    flags = set(re.findall(r"--[a-z][a-z-]+", output)) - {"--help"}
    assert flags == {"--out", "--seed", "--mask-ratio", "--image-size"}
    assert "CHECKPOINT PHOTO ..." in output


def test_the_command_draws(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    flags = ["--image-size", "32", "64", "--mask-ratio", "0.5", "--seed", "3"]
    monkeypatch.setattr(sys, "argv", ["reconstruct", str(checkpoint), str(photos), "--out", str(out), *flags])
    program.main()
    assert f"wrote {out}. Hidden patches: predicted detail, put back with the mean" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.format == "PNG"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'training.reconstruct' found in sys.modules:RuntimeWarning")
def test_the_command_refuses_with_one_sentence_and_a_status(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no photo")
    monkeypatch.setattr(sys, "argv", ["reconstruct", str(checkpoint), str(bad), "--out", str(tmp_path / "o.png")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("training.reconstruct", run_name="__main__")
    printed, error = capsys.readouterr()
    assert (ended.value.code, printed) == (2, "")
    assert error.startswith(f"error: {bad}: ") and error.count("\n") == 1
