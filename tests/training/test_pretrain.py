"""The pretraining program: it learns, resumes exactly, survives bad numbers and photos, and has the paper's recipes."""

import json
import signal
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from convmae_deploy.checkpoints import load_encoder_state, read_checkpoint
from convmae_deploy.engine.reconstruction import ReconstructionRecipe
from convmae_deploy.engine.training_run import SKIPPED_UPDATES_IN_A_ROW
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.masking import MaskingName
from convmae_deploy.models.pretraining import PretrainingConfig
from convmae_deploy.models.vit import variant_config
from tests.photo_folders import make_photo_folder
from tests.processes import RunProcesses
from tests.training_runs import check_resuming, flags_of, lines_of, not_a_number, stop_after
from training import pretrain as program

pytestmark = pytest.mark.usefixtures("small_model")
ROOT = Path(__file__).parents[2]
TEST_MODEL = ConvMAEConfig(
    embed_dims=(8, 16, 32), depths=(1, 1, 1), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(64, 64)
)
# Losses of 20 updates of TEST_MODEL in fp32, one an epoch; made by the run of the test below on an x86-64 CPU.
GOLDEN = ROOT / "tests" / "fixtures" / "pretraining_losses.txt"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photo_folder(tmp_path_factory.mktemp("photos"))


def config(
    photos: Path, out: Path, *, resume: bool = False, epochs: int = 3, batch_size: int = 4, **model: Any
) -> program.PretrainConfig:
    preset = program.nano()
    return replace(
        preset,
        data=str(photos),
        image_size=(64, 64),
        picture_epochs=0,
        model=replace(preset.model, decoder_width=16, decoder_depth=1, decoder_heads=2, **model),
        optimisation=replace(
            preset.optimisation,
            epochs=epochs,
            warmup_epochs=0.5,
            batch_size=batch_size,
            micro_batch_size=2,
            base_lr=0.1,
        ),
        run=replace(preset.run, out=out, resume=resume, workers=0, precision="fp32"),
    )


def losses(run: Path) -> list[float]:
    return [line["train_loss"] for line in lines_of(run)]


@pytest.mark.slow
def test_it_learns_and_its_checkpoint_gives_an_encoder_for_finetuning(photos: Path, tmp_path: Path) -> None:
    assert program.prepare(replace(config(photos, tmp_path / "run", epochs=8), picture_epochs=4)).fit() == 0
    curve = losses(tmp_path / "run")
    assert curve[-1] < 0.97 * curve[0]
    record, _ = read_checkpoint(tmp_path / "run")
    assert record.kind == "pretraining" and record.pretraining is not None
    assert record.pretraining.decoder_width == 16
    found, state = load_encoder_state(tmp_path / "run", (64, 64))
    assert found == TEST_MODEL and "patch_embed1.proj.weight" in state
    pictures = sorted((tmp_path / "run" / "pictures").iterdir())
    assert [picture.name for picture in pictures] == ["epoch-0004.png", "epoch-0008.png"]
    with Image.open(pictures[0]) as picture:
        assert picture.width > 4 * 64
    assert (tmp_path / "run" / "curves.png").stat().st_size > 5_000
    assert any((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("masking", ["block", "complementary", "token"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masking: MaskingName
) -> None:
    def start(out: Path, *, resume: bool = False) -> int:
        return program.prepare(config(photos, out, resume=resume, masking=masking)).fit()

    check_resuming(start, tmp_path, monkeypatch, (1, 4))


@pytest.mark.slow
def test_twenty_updates_give_the_golden_losses(photos: Path, tmp_path: Path) -> None:
    run = config(photos, tmp_path / "run", epochs=20, batch_size=12)
    run = replace(run, exact_crop=True, optimisation=replace(run.optimisation, micro_batch_size=12))
    assert program.prepare(run).fit() == 0
    golden = [float(line) for line in GOLDEN.read_text().split()]
    assert losses(tmp_path / "run") == pytest.approx(golden, rel=1e-3)


@pytest.mark.slow
def test_photos_without_labels_and_broken_ones_are_taken_as_they_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_photo_folder(tmp_path / "source", per_class=4)
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, photo in enumerate(sorted((source / "train").rglob("*.png"))):
        photo.rename(flat / f"{number}.png")
    (flat / "broken.png").write_bytes((flat / "0.png").read_bytes()[:200])
    assert program.prepare(config(flat, tmp_path / "run", epochs=2, batch_size=9)).fit() == 0
    lines = lines_of(tmp_path / "run")
    assert [line["unreadable_train"] for line in lines] == [1, 2]
    listed = (tmp_path / "run" / "unreadable.txt").read_text()
    assert listed.startswith(f"{flat}/broken.png\tthe image is incomplete: ") and listed.count("\n") == 1
    said = capsys.readouterr().out
    assert said.count(f"1 file could not be decoded, the first {flat}/broken.png: the image is incomplete: ") == 2
    assert said.startswith(
        f"data {flat}\n  train: 9 photos; 9 tried: 48 x 48 pixels\n  look at train: files that cannot"
    )
    assert json.loads((tmp_path / "run" / "data_check.json").read_text())["splits"][0]["facts"]["photos"] == 9


def break_photos(root: Path, kept: int) -> None:
    """Cuts off all photos of root/train but the first ones."""
    for photo in sorted((root / "train").rglob("*.png"))[kept:]:
        photo.write_bytes(photo.read_bytes()[:200])


@pytest.mark.slow
def test_updates_without_a_readable_photo_are_skipped_and_counted(tmp_path: Path) -> None:
    photos = make_photo_folder(tmp_path / "photos")
    break_photos(photos, kept=2)
    assert program.prepare(config(photos, tmp_path / "run", epochs=2)).fit() == 0
    lines = lines_of(tmp_path / "run")
    assert [line["unreadable_train"] for line in lines] == [10, 20]
    assert lines[-1]["skipped_updates"] in (2, 3, 4)  # of six: the two good photos are in one or two of each epoch
    assert all(line["train_loss"] is not None for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epochs", "sentence"),
    [
        (6, r"last 10 updates up to 10 were skipped, the last because none of its 4 files .* mend the data"),
        (2, "all 6 updates of the run were skipped"),
    ],
)
def test_data_that_cannot_be_read_end_the_run_with_the_cause(tmp_path: Path, epochs: int, sentence: str) -> None:
    photos = make_photo_folder(tmp_path / "photos")
    loop = program.prepare(config(photos, tmp_path / "run", epochs=epochs))
    break_photos(photos, kept=0)  # after the check of the data, which refuses a folder without a photo that can be read
    with pytest.raises(ConvMAEError, match=sentence):
        loop.fit()


@pytest.mark.slow
def test_shards_are_learnt_from_and_a_stopped_run_goes_on_with_the_next_shard(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((photos / "train").rglob("*.png"))
    for number in range(4):
        with tarfile.open(tmp_path / f"shard-{number}.tar", "w") as archive:
            for index, file in enumerate(files[number::4]):
                archive.add(file, f"{number}{index}.png")
    shards = tmp_path / "shard-{0..3}.tar"
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert program.prepare(config(shards, tmp_path / "run", batch_size=4)).fit() == 128 + signal.SIGTERM
    assert program.prepare(config(shards, tmp_path / "run", batch_size=4, resume=True)).fit() == 0
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [3, 6, 9]
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["data"].items() >= {"shards": 4, "samples": 12, "processes": 1}.items()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"masking": "complementary", "mask_ratio": 0.7}, "visible share of 1/k"),
        ({"mask_ratio": 0.99}, "must hide some of 16 cells and leave some"),
    ],
)
def test_masks_that_cannot_be_are_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConvMAEError, match=sentence):
        program.prepare(config(photos, tmp_path / "run", **changes)).fit()
    assert not (tmp_path / "run").exists()


def test_updates_that_are_not_finite_are_skipped_and_leave_the_weights_alone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ReconstructionRecipe.loss
    calls = 0

    def sometimes(self: ReconstructionRecipe, images: Tensor, noise: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        # the second update's second micro-batch
        return not_a_number(self.run.model) if calls == 4 else original(self, images, noise)

    monkeypatch.setattr(ReconstructionRecipe, "loss", sometimes)
    assert program.prepare(config(photos, tmp_path / "run", epochs=1)).fit() == 0
    (line,) = lines_of(tmp_path / "run")
    assert line["skipped_updates"] == 1
    assert line["train_loss"] == line["train_loss"] < 10  # the mean of the two others
    weights = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.slow
def test_bad_numbers_without_end_stop_the_run_with_good_weights_and_advice_that_works(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ReconstructionRecipe, "loss", lambda self, images, noise: not_a_number(self.run.model))
        with pytest.raises(
            ConvMAEError,
            match=r"its loss was nan .*; the weights .* are in .*last: continue with --resume and --precision fp32",
        ):
            program.prepare(config(photos, tmp_path / "run", epochs=6)).fit()
    state = torch.load(tmp_path / "run" / "last" / "training_state.pt", weights_only=True)
    assert state["progress"]["step"] == SKIPPED_UPDATES_IN_A_ROW
    calmer = config(photos, tmp_path / "run", epochs=6, resume=True)
    calmer = replace(calmer, optimisation=replace(calmer.optimisation, base_lr=0.01, clip_grad=0.5))
    assert program.prepare(calmer).fit() == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["resumed"][0]["changed"]["optimisation.base_lr"] == [0.1, 0.01]


@pytest.mark.slow
def test_an_update_that_holds_all_photos_has_their_learning_rate_and_says_so(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = config(photos, tmp_path / "run", epochs=2, batch_size=1024)
    whole = replace(whole, optimisation=replace(whole.optimisation, micro_batch_size=12))
    assert program.prepare(whole).fit() == 0
    peak = 0.1 * 12 / 256
    assert [line["lr"] for line in lines_of(tmp_path / "run")] == pytest.approx([0, 0.75 * peak])  # after its warm-up
    told = capsys.readouterr().out
    assert "each of 12 photos (there are no more, where --batch-size says 1024)" in told
    assert "learning rate: 0.0046875, which is --base-lr 0.1" in told
    assert "epoch 1/2, update 1/2: loss" in told and "update 2/2" not in told
    start = json.loads((tmp_path / "run" / "run.json").read_text())["start"]
    check = told.splitlines().index(start[0])  # lines on the data stand before
    assert told.splitlines()[check : check + 4] == start and 0 < check <= 10


@pytest.mark.slow
def test_a_run_goes_on_in_other_micro_batches_as_it_would_have_and_for_more_epochs_but_not_for_fewer(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.prepare(config(photos, tmp_path / "whole", epochs=1, batch_size=6)).fit()
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        begun = config(photos, tmp_path / "run", epochs=1, batch_size=6)
        assert program.prepare(begun).fit() == 128 + signal.SIGTERM
    again = config(photos, tmp_path / "run", epochs=1, batch_size=6, resume=True)
    again = replace(again, optimisation=replace(again.optimisation, micro_batch_size=3))
    assert program.prepare(again).fit() == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    longer = replace(again, optimisation=replace(again.optimisation, epochs=2))
    assert program.prepare(longer).fit() == 0
    assert len(losses(tmp_path / "run")) == 2
    with pytest.raises(ConvMAEError, match="has done 4 updates already, more than the 2 of --epochs 1; .* least 2"):
        program.prepare(again).fit()


@pytest.mark.slow
def test_two_processes_learn_what_one_does(photos: Path, tmp_path: Path, run_processes: RunProcesses) -> None:
    flags = ["training.pretrain", "nano", "--data", str(photos), "--epochs", "2", "--batch-size", "4"]
    flags += ["--warmup-epochs", "0", "--image-size", "64", "64", "--workers", "0", "--precision", "fp32"]
    flags += ["--base-lr", "0.1"]
    flags += ["--masking", "complementary", "--decoder-width", "16", "--decoder-depth", "1", "--decoder-heads", "2"]
    run_processes(1, *flags, "--out", str(tmp_path / "one"))
    run_processes(2, *flags, "--out", str(tmp_path / "two"))
    one_loss, two_loss = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert two_loss == pytest.approx(one_loss, rel=1e-3)
    assert one_loss[1] < 0.99 * one_loss[0]  # gradients that were not shared would show


def test_the_authors_recipe_is_the_base_preset() -> None:
    _, base = program.PRESETS["base"]
    optimisation = base.optimisation
    assert optimisation.learning_rate == pytest.approx(1.8e-3)
    assert (optimisation.epochs, optimisation.warmup_epochs, optimisation.batch_size) == (1600, 40, 3072)
    assert (optimisation.betas, optimisation.weight_decay, optimisation.min_lr) == ((0.9, 0.95), 0.05, 0.0)
    assert optimisation.clip_grad is None
    assert base.model == PretrainingConfig()
    assert (base.model.mask_ratio, base.model.norm_pix_loss, base.model.multi_scale) == (0.75, True, True)
    assert (base.crop_scale, base.flip) == ((0.2, 1.0), 0.5)


def test_fastconvmaes_recipe_is_a_preset() -> None:
    _, fast = program.PRESETS["fast"]
    assert fast.model.masking == "complementary"
    assert (fast.optimisation.epochs, fast.optimisation.warmup_epochs) == (50, 10)
    assert fast.optimisation.learning_rate == pytest.approx(1.2e-3)


@pytest.mark.parametrize("name", program.PRESETS)
def test_every_preset_has_the_decoder_of_the_authors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real nano
    _, preset = program.PRESETS[name]
    first_stage = next(ratio for ratio in variant_config(preset.variant, None).mlp_ratios if ratio)
    assert preset.model.decoder_mlp_ratio == first_stage  # as in the authors' code
    if name.startswith(("table4", "table5", "table8", "vit")):
        assert not preset.model.multi_scale


def test_the_flags_are_these(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["pretrain", "nano", "--help"])
    assert flags_of(program.main, capsys) == {
        "--variant", "--data", "--samples-per-epoch", "--image-size", "--crop-scale", "--flip", "--exact-crop",
        "--no-exact-crop", "--grad-checkpointing",
        "--no-grad-checkpointing", "--picture-epochs", "--licence", "--decoder-width", "--decoder-depth",
        "--decoder-heads", "--decoder-mlp-ratio", "--masking", "--mask-ratio", "--multi-scale", "--no-multi-scale",
        "--masked-convolution", "--no-masked-convolution", "--norm-pix-loss", "--no-norm-pix-loss",
        "--epochs", "--batch-size", "--micro-batch-size", "--base-lr", "--min-lr", "--warmup-epochs", "--weight-decay",
        "--betas", "--clip-grad", "--out", "--resume", "--no-resume", "--check-data", "--no-check-data",
        "--seed", "--precision", "--compile",
        "--no-compile", "--workers", "--save-minutes",
    }  # fmt: skip
