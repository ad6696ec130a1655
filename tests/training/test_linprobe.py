"""The linear probe: it learns, resumes exactly, equals the authors' updates, and leaves a classifier like any other."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from convmae_deploy.bundle.preprocessing import standard_preprocessing
from convmae_deploy.checkpoints import CheckpointRecord, load_classifier, save_checkpoint
from convmae_deploy.checkpoints.original_keys import fold_probe_head
from convmae_deploy.data.determinism import StepSampler
from convmae_deploy.engine.classification import initial_record
from convmae_deploy.engine.feature_cache import FeatureCache
from convmae_deploy.engine.optimisation import LarsConfig, build_lars
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import GlobalPool
from convmae_deploy.models.convmae import MODELS, ConvMAEConfig, build_convmae
from convmae_deploy.models.pretraining import PretrainingConfig, build_pretraining
from tests.original_files import CONFIG, probe_state, recorded_tensor, relative_error
from tests.photo_folders import make_photo_folder
from tests.processes import RunProcesses
from tests.recorded_pretraining import needs_recorded_passes, pass_tensor, reference_folder
from tests.training_runs import check_resuming, flags_of, lines_of
from training import linprobe as program

pytestmark = pytest.mark.usefixtures("small_model")
TEST_MODEL = ConvMAEConfig(
    embed_dims=(8, 16, 32), depths=(1, 1, 1), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(32, 32)
)
DECODER = PretrainingConfig(decoder_width=8, decoder_depth=1, decoder_heads=2)
TOLERANCE = 1e-5
POOLINGS: list[tuple[str, GlobalPool]] = [("globalpool", "avg"), ("firsttoken", "token")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two colours; one photo of each split cannot be read."""
    root = make_photo_folder(tmp_path_factory.mktemp("photos"))
    for split in ("train", "val"):
        (root / split / "red" / "damaged.png").write_bytes(b"not a photo")
    return root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = build_pretraining(TEST_MODEL, DECODER)
    for layer in model.encoder.modules():  # so that features depend on the photo more than on its position
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.3)
    nn.init.normal_(model.norm.weight, mean=1.0, std=0.1)
    directory = tmp_path_factory.mktemp("pretrained") / "last"
    record = CheckpointRecord(kind="pretraining", variant="nano", model=TEST_MODEL, pretraining=DECODER)
    save_checkpoint(directory, model.state_dict(), record)
    return directory


def config(
    photos: Path, init: Path, out: Path, *, resume: bool = False, epochs: int = 3, views: int = 0, **changes: Any
) -> program.LinprobeConfig:
    return replace(
        program.nano(),
        data=photos,
        init=init,
        image_size=None,
        cached_views=views,
        optimisation=LarsConfig(
            epochs=epochs, warmup_epochs=0.5, batch_size=6, micro_batch_size=6, base_lr=4.0, trust_coefficient=1.0
        ),
        run=replace(program.nano().run, out=out, resume=resume, workers=0, precision="fp32"),
        **changes,
    )


def losses(run: Path) -> list[tuple[float, float]]:
    return [(line["train_loss"], line["val_loss"]) for line in lines_of(run)]


@pytest.mark.slow
@pytest.mark.parametrize(("views", "pool"), [(0, "avg"), (2, "token")])
def test_it_learns_two_colours_and_its_best_checkpoint_is_the_probe_in_evaluation(
    photos: Path, pretrained: Path, tmp_path: Path, views: int, pool: GlobalPool
) -> None:
    plain = config(photos, pretrained, tmp_path / "run", epochs=15, views=views, global_pool=pool, validation_epochs=15)
    loop = program.prepare(plain)
    assert loop.fit() == 0
    assert isinstance(loop.recipe, program.LinearProbeRecipe)

    lines = lines_of(tmp_path / "run")
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert lines[-1]["val_top1"] > 90 and "val_top1" not in lines[0]
    assert lines[-1]["unreadable_val"] == 1 and lines[-1]["unreadable_train"] > 0
    model, record = load_classifier(tmp_path / "run")
    assert (record.classes, record.global_pool, model.global_pool) == (("blue", "red"), pool, pool)
    assert f"top-1 {lines[-1]['val_top1']:.2f} %" in record.provenance["validation"]
    encoder = load_file(pretrained / "model.safetensors")
    assert all(torch.equal(value, encoder[f"encoder.{name}"]) for name, value in model.encoder.state_dict().items())

    images = torch.randn(4, 3, 32, 32)
    probe = loop.run.model.eval()
    with torch.no_grad():
        assert relative_error(model(images), probe(loop.recipe.features(images))) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("stops", "views"), [((1, 5), 0), ((2, 5), 2)])
def test_a_resumed_run_equals_an_uninterrupted_one(
    photos: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...], views: int
) -> None:
    def start(out: Path, *, resume: bool = False) -> int:
        with monkeypatch.context() as patch:
            if resume:
                patch.setattr(FeatureCache, "_compute", None)  # what was computed is there
            return program.prepare(config(photos, pretrained, out, views=views, resume=resume)).fit()

    check_resuming(start, tmp_path, monkeypatch, stops)


@pytest.mark.slow
def test_as_many_cached_views_as_epochs_equal_none(photos: Path, pretrained: Path, tmp_path: Path) -> None:
    for views in (0, 3):
        assert program.prepare(config(photos, pretrained, tmp_path / str(views), views=views)).fit() == 0
    uncached, cached = lines_of(tmp_path / "0"), lines_of(tmp_path / "3")
    for expected, found in zip(uncached, cached, strict=True):
        for name in ("train_loss", "val_loss"):
            assert found[name] == pytest.approx(expected[name], rel=TOLERANCE)
        for name in ("val_top1", "unreadable_train", "unreadable_val", "lr"):
            assert found[name] == expected[name]
    assert len(list((tmp_path / "3" / "features").iterdir())) == 4


@pytest.mark.slow
def test_one_cached_view_serves_every_epoch(photos: Path, pretrained: Path, tmp_path: Path) -> None:
    assert program.prepare(config(photos, pretrained, tmp_path / "run", views=1)).fit() == 0
    files = sorted(file.name for file in (tmp_path / "run" / "features").iterdir())
    assert files == ["val.safetensors", "view-0.safetensors"]


def test_only_the_head_is_trained_and_kept_to_resume(photos: Path, pretrained: Path, tmp_path: Path) -> None:
    loop = program.prepare(config(photos, pretrained, tmp_path / "run"))
    assert isinstance(loop.recipe, program.LinearProbeRecipe)
    classifier = loop.recipe.features.classifier
    assert not classifier.training and not any(parameter.requires_grad for parameter in classifier.parameters())
    assert loop.run.model.training
    assert set(loop.run.weights()) == {
        "head.0.running_mean",
        "head.0.running_var",
        "head.0.num_batches_tracked",
        "head.1.weight",
        "head.1.bias",
    }


def test_the_first_token_is_taken_under_the_pretraining_norm(photos: Path, pretrained: Path, tmp_path: Path) -> None:
    plain = config(photos, pretrained, tmp_path / "run", global_pool="token")
    record = initial_record("nano", ("a", "b"), None, licence="", global_pool="token")
    classifier = program.frozen_classifier(plain, record, Console(quiet=True))
    images = torch.randn(2, 3, 32, 32)
    state = load_file(pretrained / "model.safetensors")
    with torch.no_grad():
        token = classifier.encoder(images)[2][:, :, 0, 0]
        expected = F.layer_norm(token, (32,), state["norm.weight"], state["norm.bias"], 1e-6)
        found = program.FrozenFeatures(classifier, standard_preprocessing((32, 32)), Accelerator(cpu=True))(images)
    assert relative_error(found, expected) <= TOLERANCE


@pytest.mark.parametrize(("pooling", "pool"), POOLINGS)
def test_a_recorded_probe_folds_into_the_logits_of_its_evaluation(pooling: str, pool: GlobalPool) -> None:
    head = {name: value for name, value in probe_state(pooling).items() if name.startswith("head.")}
    features, logits = (recorded_tensor("linear_probes", f"{pooling}/{name}") for name in ("features", "logits"))
    probe = program.LinearProbe(96, 10, 0.01)
    probe.load_state_dict(head)
    assert relative_error(probe.eval()(features), logits) <= TOLERANCE
    del head["head.0.num_batches_tracked"]
    folded = fold_probe_head(head)
    assert relative_error(F.linear(features, folded["head.weight"], folded["head.bias"]), logits) <= TOLERANCE


@needs_recorded_passes
@pytest.mark.parametrize(("pooling", "pool"), POOLINGS)
def test_the_frozen_features_equal_the_recorded_ones(
    pooling: str, pool: GlobalPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "nano", lambda: CONFIG)
    plain = config(tmp_path, reference_folder() / "pretrain_encoder_only.pth", tmp_path / "run", global_pool=pool)
    record = initial_record("nano", ("a", "b"), None, licence="", global_pool=pool)
    classifier = program.frozen_classifier(plain, record, Console(quiet=True))
    name = f"linprobe_{pooling}"
    features = program.FrozenFeatures(classifier, standard_preprocessing((32, 32)), Accelerator(cpu=True))(
        pass_tensor(name, "input")
    )
    assert relative_error(features, pass_tensor(name, "features")) <= TOLERANCE


def two_steps(weight: Tensor, features: Tensor, targets: Tensor) -> tuple[program.LinearProbe, Tensor]:
    """The probe after two updates from a weight and no bias, and the losses before them; in float64."""
    probe = program.LinearProbe(weight.shape[1], len(weight), 0.01).double()
    linear = probe.head[1]
    assert isinstance(linear, nn.Linear)
    linear.weight.data.copy_(weight)
    optimizer = build_lars(probe, LarsConfig(batch_size=256, base_lr=0.1))  # a learning rate of 0.1
    losses = []
    for _ in range(2):
        loss = F.cross_entropy(probe(features), targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.detach())
    return probe, torch.stack(losses)


@needs_recorded_passes
@pytest.mark.parametrize(("pooling", "pool"), POOLINGS)
def test_two_updates_equal_those_of_the_authors_code(pooling: str, pool: GlobalPool) -> None:
    """The weight before them is not in the file: it is the one from which two updates lead to the recorded weight.

    Losses, bias and statistics do not depend on that; a trust coefficient of 0 or 0.002 is off by 2e-4 in the losses.
    """
    recorded = {
        name: pass_tensor(f"linprobe_{pooling}", name)
        for name in ("features", "target", "head_weight", "head_bias", "bn_mean", "bn_var", "lars_losses", "logits")
    }
    features, targets, weight_after = (
        recorded["features"].double(),
        recorded["target"],
        recorded["head_weight"].double(),
    )
    weight = weight_after
    for _ in range(20):
        probe, losses = two_steps(weight, features, targets)
        weight = weight + weight_after - probe.state_dict()["head.1.weight"]
    assert relative_error(losses, recorded["lars_losses"]) <= 1e-6
    found = probe.state_dict()
    for ours, theirs in {
        "head.1.weight": "head_weight",
        "head.1.bias": "head_bias",
        "head.0.running_mean": "bn_mean",
        "head.0.running_var": "bn_var",
    }.items():
        assert relative_error(found[ours], recorded[theirs]) <= 1e-6, ours
    assert relative_error(probe.eval()(features), recorded["logits"]) <= 1e-6


def test_init_is_required(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["linprobe", "nano", "--data", str(photos), "--out", "run"])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert "--init" in capsys.readouterr().err


def test_the_first_token_without_a_pretraining_norm_is_refused(photos: Path, tmp_path: Path) -> None:
    record = CheckpointRecord(kind="features", variant="nano", model=TEST_MODEL)
    save_checkpoint(tmp_path / "encoder", build_convmae(TEST_MODEL).state_dict(), record)
    with pytest.raises(ConvMAEError, match="--global-pool token needs the norm of the pretraining and .* holds none"):
        program.prepare(config(photos, tmp_path / "encoder", tmp_path / "run", global_pool="token")).fit()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_is_not_continued_on_another_encoder(photos: Path, pretrained: Path, tmp_path: Path) -> None:
    assert program.prepare(config(photos, pretrained, tmp_path / "run", epochs=1)).fit() == 0
    record = CheckpointRecord(kind="features", variant="nano", model=TEST_MODEL)
    save_checkpoint(tmp_path / "other", build_convmae(TEST_MODEL).state_dict(), record)
    with pytest.raises(ConvMAEError, match="was begun with data encoder"):
        program.prepare(config(photos, tmp_path / "other", tmp_path / "run", epochs=1, resume=True)).fit()


def test_settings_that_cannot_work_are_refused(photos: Path, pretrained: Path, tmp_path: Path) -> None:
    plain = config(photos, pretrained, tmp_path / "run")
    with pytest.raises(ConvMAEError, match="cached_views must be at least 0; got -1"):
        replace(plain, cached_views=-1)
    with pytest.raises(ConvMAEError, match="validation_epochs must be at least 1; got 0"):
        replace(plain, validation_epochs=0)
    with pytest.raises(ConvMAEError, match="micro_batch_size must be at least 2"):
        replace(plain, optimisation=replace(plain.optimisation, micro_batch_size=1))


def test_a_single_photo_at_once_is_refused(photos: Path, pretrained: Path, tmp_path: Path) -> None:
    plain = config(photos, pretrained, tmp_path / "run")
    with pytest.raises(ConvMAEError, match="BatchNorm needs at least two photos at once"):
        program.prepare(replace(plain, optimisation=replace(plain.optimisation, batch_size=1))).fit()


def test_a_photo_alone_is_refused_on_several_processes_too() -> None:
    program.check_no_photo_alone(StepSampler(9, batch_size=4, micro_batch_size=2, seed=0, world_size=2))
    for batch, micro in ((2, 256), (6, 2)):
        with pytest.raises(ConvMAEError, match="on 2 processes has a micro-batch of one: raise --batch-size"):
            program.check_no_photo_alone(StepSampler(9, batch_size=batch, micro_batch_size=micro, seed=0, world_size=2))


def test_the_papers_recipe_is_the_base_preset() -> None:
    _, base = program.PRESETS["base"]
    optimisation = base.optimisation
    assert optimisation.learning_rate == pytest.approx(1.6)
    assert (optimisation.epochs, optimisation.batch_size, optimisation.warmup_epochs) == (90, 4096, 10)
    assert (optimisation.min_lr, optimisation.weight_decay, optimisation.momentum) == (0, 0, 0.9)
    assert (optimisation.trust_coefficient, optimisation.clip_grad, base.head_init_std) == (0.001, None, 0.01)
    assert (base.global_pool, base.cached_views, base.crop_scale, base.flip) == ("avg", 0, (0.08, 1.0), 0.5)


def test_the_flags_are_these(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["linprobe", "nano", "--help"])
    assert flags_of(program.main, capsys) == {
        "--variant", "--data", "--init", "--image-size", "--global-pool", "--cached-views", "--head-init-std",
        "--crop-scale", "--flip", "--validation-epochs", "--licence", "--epochs", "--batch-size", "--micro-batch-size",
        "--base-lr", "--min-lr", "--warmup-epochs", "--clip-grad", "--momentum", "--trust-coefficient", "--out",
        "--resume", "--no-resume", "--check-data", "--no-check-data",
        "--seed", "--precision", "--compile", "--no-compile", "--workers", "--save-minutes",
    }  # fmt: skip


@pytest.mark.slow
def test_two_processes_compute_the_same_features_and_learn(
    photos: Path, tmp_path: Path, run_processes: RunProcesses
) -> None:
    architecture = replace(MODELS["tiny"](), image_size=(32, 32))
    record = CheckpointRecord(kind="features", variant="tiny", model=architecture)
    save_checkpoint(tmp_path / "encoder", build_convmae(architecture).state_dict(), record)
    flags = ["training.linprobe", "tiny", "--data", str(photos), "--init", str(tmp_path / "encoder")]
    flags += ["--epochs", "2", "--warmup-epochs", "0", "--batch-size", "12", "--image-size", "32", "32"]
    flags += ["--cached-views", "1", "--workers", "0", "--precision", "fp32"]
    run_processes(1, *flags, "--out", str(tmp_path / "one"))
    run_processes(2, *flags, "--out", str(tmp_path / "two"))
    for file in ("view-0.safetensors", "val.safetensors"):
        one, two = (load_file(tmp_path / name / "features" / file) for name in ("one", "two"))
        assert torch.equal(two["readable"], one["readable"]) and not one["readable"].all()
        assert relative_error(two["values"], one["values"]) <= TOLERANCE
    assert lines_of(tmp_path / "two")[-1]["val_loss"] == pytest.approx(
        lines_of(tmp_path / "one")[-1]["val_loss"], rel=0.1
    )
    load_classifier(tmp_path / "two")
