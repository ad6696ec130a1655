"""Folders for hubs: timm, this project's programs and people read them."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

import hubconf
from convmae_deploy.bundle.manifest import Licence
from convmae_deploy.bundle.preprocessing import Preprocessing, standard_preprocessing
from convmae_deploy.checkpoints import CheckpointRecord, load_initial_encoder, save_checkpoint
from convmae_deploy.checkpoints.loading import load_classifier, load_feature_extractor
from convmae_deploy.checkpoints.native import read_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.hub import crop_share, hub_licence, write_hub_folder
from convmae_deploy.models.classifier import build_classifier
from convmae_deploy.models.convmae import MODELS, build_convmae, nano
from convmae_deploy.models.detector import DetectorConfig
from convmae_deploy.models.pretraining import PretrainingConfig, build_pretraining
from convmae_deploy.tasks.preprocess import preprocess
from export.tasks import open_task
from tests.small_hub import small_hub

ROOT = Path(__file__).parents[1]
CONFIG = replace(MODELS["nano"](), image_size=(64, 96))
CLASSES = ("tench", "golf ball", "église")
PREPROCESSING = Preprocessing(resize=(71, 106), crop=(64, 96), interpolation="bilinear", mean=(0.4, 0.5, 0.6))
PROVENANCE = {
    "epoch": "3 of 4",
    "validation": "top-1 66.67 %",
    "command": "python -m training.finetune nano",
    "note": "\x1b[2J\n# a heading, <b>markup</b>",
}
CLASSIFIER = CheckpointRecord(
    kind="classification",
    variant="nano",
    model=CONFIG,
    classes=CLASSES,
    global_pool="token",
    preprocessing=standard_preprocessing((64, 96)),
    licence=Licence(name="CC-BY-4.0"),
    provenance=PROVENANCE,
)
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def shaken(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict of a model of which no two parameters are alike, as after a training."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in model.state_dict().items()
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finetuning run."""
    folder = tmp_path_factory.mktemp("run")
    state = shaken(build_classifier(CONFIG, num_classes=len(CLASSES), global_pool="token"))
    save_checkpoint(folder / "best", state, CLASSIFIER)
    save_checkpoint(folder / "last", state, CLASSIFIER.model_copy(update={"provenance": {}}))
    description = {
        "config": {"data": "/home/someone/imagenette"},
        "data": {"train_photos": 90, "classes": ["a"]},
        "command": "python -m training.finetune nano",
        "seed": 7,
        "versions": {"torch": "2.15.0"},
        "resumed": [{}, {}],
    }
    (folder / "run.json").write_text(json.dumps(description))
    lines = [{"step": 10 * epoch, "epoch": epoch, "val_top1": 60 + epoch, "val_top5": 99.0} for epoch in (1, 2, 3, 4)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def published(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `convmae to-hub` makes of that run."""
    out = tmp_path_factory.mktemp("hub") / "golf"
    write_hub_folder(run, out)
    return out


def created(folder: Path, **arguments: Any) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **arguments).eval()


@pytest.mark.slow
def test_timm_and_this_project_read_the_same_classifier(run: Path, published: Path) -> None:
    expected, _ = load_classifier(run)
    native, record = load_classifier(published)
    assert record == CLASSIFIER
    with torch.no_grad():
        assert torch.equal(created(published)(IMAGES), expected(IMAGES))
        assert torch.equal(native(IMAGES), expected(IMAGES))
        for found, wanted in zip(created(published, features_only=True)(IMAGES), expected.encoder(IMAGES), strict=True):
            assert torch.equal(found, wanted)
    assert sorted(file.name for file in published.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert created(published).pretrained_cfg["label_names"] == list(CLASSES)


@pytest.mark.slow
def test_programs_take_the_folder_as_it_is(published: Path, run: Path) -> None:
    task = open_task(published, None)
    assert (task.task, task.record.classes) == ("classification", CLASSES)
    wanted = replace(CONFIG, image_size=(64, 64))
    state, _ = load_initial_encoder(published, wanted)
    assert state.keys() == build_convmae(wanted).state_dict().keys()
    assert torch.equal(
        state["blocks1.0.conv1.bias"], load_classifier(run)[0].state_dict()["encoder.blocks1.0.conv1.bias"]
    )


@pytest.mark.slow
def test_timm_s_transform_is_ours(run: Path, tmp_path: Path) -> None:
    record, state = read_checkpoint(run)
    save_checkpoint(tmp_path / "own", state, record.model_copy(update={"preprocessing": PREPROCESSING}))
    write_hub_folder(tmp_path / "own", tmp_path / "hub")
    resolve: Any = resolve_model_data_config
    pixels = np.random.default_rng(0).integers(0, 256, size=(120, 150, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    transform: Any = create_transform(**resolve(created(tmp_path / "hub")), is_training=False)
    torch.testing.assert_close(transform(photo), torch.from_numpy(preprocess(photo, PREPROCESSING)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["features", "pretraining"])
def test_an_encoder_is_published_without_a_head(kind: Any, tmp_path: Path) -> None:
    pretraining = PretrainingConfig(decoder_width=32, decoder_depth=1, decoder_heads=2)
    state = shaken(build_pretraining(CONFIG, pretraining))
    encoder = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    norm = {"norm.weight": torch.ones(192), "norm.bias": torch.zeros(192)}  # as in the authors' file
    record = CheckpointRecord(kind=kind, variant="nano", model=CONFIG)
    if kind == "pretraining":
        record = record.model_copy(update={"pretraining": pretraining})
    save_checkpoint(tmp_path / "own", encoder | norm if kind == "features" else state, record)
    write_hub_folder(tmp_path / "own", tmp_path / "hub")
    expected, _ = load_feature_extractor(tmp_path / "own")
    with torch.no_grad():
        pooled = created(tmp_path / "hub")(IMAGES)
        assert pooled.shape == (2, 192)
        assert torch.equal(pooled, expected(IMAGES))
        assert torch.equal(load_feature_extractor(tmp_path / "hub")[0](IMAGES), pooled)
        assert created(tmp_path / "hub", num_classes=4)(IMAGES).shape == (2, 4)
    assert open_task(tmp_path / "hub", None).task == "features"
    found, _ = load_initial_encoder(tmp_path / "hub", CONFIG)
    assert all(torch.equal(found[name], value) for name, value in encoder.items())
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert card.data.get("pipeline_tag") == "image-feature-extraction" and card.data.get("license") == "unknown"
    assert "None were recorded." in card.text and "says nothing of it: this is the paper's evaluation" in card.text


def test_the_card_says_what_the_run_recorded(published: Path, run: Path) -> None:
    card = ModelCard.load(published / "README.md")
    head = card.data.to_dict()
    assert (head["license"], head["library_name"], head["pipeline_tag"]) == (
        "cc-by-4.0",
        "timm",
        "image-classification",
    )
    assert {"timm", "convmae"} <= set(head["tags"])
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"] == {"name": "validation photos of imagenette", "type": "imagenette", "split": "val"}
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values == {
        "top-1 accuracy (%)": 63.0,
        "top-5 accuracy (%)": 99.0,
    }  # those of epoch 3, whose weights these are
    assert "| top-1 accuracy (%) | 63.00 | metrics.jsonl of the run |" in card.text
    for fact in ("epoch: 3 of 4", "seed: 7", "train_photos: 90", "versions: torch 2.15.0", "resumed, times: 2"):
        assert f"\n    {fact}\n" in card.text
    assert card.text.count("command: python -m training.finetune nano") == 1


def test_what_stands_in_a_checkpoint_is_no_markup_in_the_card(published: Path) -> None:
    text = (published / "README.md").read_text(encoding="utf-8")
    assert "    note: \\x1b[2J\\n# a heading, <b>markup</b>\n" in text and "\x1b" not in text


@pytest.mark.slow
def test_a_checkpoint_that_names_no_epoch_has_no_scores(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "best", tmp_path / "alone")  # without the run around it
    for source, stated in ((run / "last", "None were recorded."), (tmp_path / "alone", "See `validation` below.")):
        write_hub_folder(source, tmp_path / f"hub-{source.name}")
        card = ModelCard.load(tmp_path / f"hub-{source.name}" / "README.md")
        assert "model-index" not in card.data.to_dict() and stated in card.text


@pytest.mark.slow
def test_a_run_whose_description_holds_other_things_is_published_without_them(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    descriptions: tuple[Any, ...] = (
        [],
        {"config": [], "data": 3, "versions": "1", "resumed": {}},
        {"config": {"data": "a\nb\ud800"}},
    )
    for description in descriptions:
        (tmp_path / "run" / "run.json").write_text(json.dumps(description))
        write_hub_folder(tmp_path / "run", tmp_path / "hub")
        card = ModelCard.load(tmp_path / "hub" / "README.md")
        assert "run.json says" not in card.text
        shutil.rmtree(tmp_path / "hub")
    assert card.data.to_dict()["model-index"][0]["results"][0]["dataset"]["type"] == r"a\nb\ud800"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MIT", ("mit", None)),
        ("unspecified: ask whoever trained these weights", ("unknown", None)),
        ("ImageNet terms: research use!", ("other", "imagenet-terms-research-use")),
    ],
)
def test_a_licence_that_hubs_have_no_word_for_keeps_its_name(name: str, expected: tuple[str, str | None]) -> None:
    assert hub_licence(Licence(name=name)) == expected


def test_timm_covers_what_we_do_at_every_size() -> None:
    for side in range(32, 4097, 32):
        for preprocessing in (
            standard_preprocessing((side, side)),
            Preprocessing(resize=(side, side), crop=(side, side)),
            Preprocessing(resize=(min(side + 11, 4096),) * 2, crop=(side, side)),
        ):
            assert int(side / crop_share(preprocessing)) == preprocessing.resize[0]
    with pytest.raises(ConvMAEError, match="the same share of both sides"):
        crop_share(Preprocessing(resize=(64, 200), crop=(64, 64)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "detector", "detector": DetectorConfig()}, "a classifier or an encoder of photos.* holds a detector"),
        (
            {"kind": "video_classifier"},
            "holds a video classifier; give a checkpoint of one of these",
        ),
        ({"model": replace(CONFIG, kernel_size=7)}, "does not fit its config"),
        ({"classes": ("one",)}, "does not fit its config"),
        ({"preprocessing": Preprocessing(resize=(64, 200), crop=(64, 96))}, "the same share of both sides"),
    ],
)
def test_what_timm_cannot_load_is_refused_and_leaves_nothing(
    changed: dict[str, Any], message: str, run: Path, tmp_path: Path
) -> None:
    record, state = read_checkpoint(run)
    save_checkpoint(tmp_path / "own", state, record.model_copy(update=changed))
    with pytest.raises(ConvMAEError, match=message):
        write_hub_folder(tmp_path / "own", tmp_path / "hub")
    assert [entry.name for entry in tmp_path.iterdir()] == ["own"]


def test_a_model_of_no_variant_is_refused(tmp_path: Path) -> None:
    config = replace(CONFIG, depths=(1, 1, 1))
    record = CheckpointRecord(kind="features", variant="custom", model=config)
    save_checkpoint(tmp_path / "own", build_convmae(config).state_dict(), record)
    with pytest.raises(ConvMAEError, match=r"one of the variants that timm knows by name \(nano, tiny, .* and holds"):
        write_hub_folder(tmp_path / "own", tmp_path / "hub")


def test_an_existing_folder_is_refused_and_stays(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ConvMAEError, match="exists already"):
        write_hub_folder(run, tmp_path)
    assert (tmp_path / "mine.txt").exists()


def test_keys_that_are_neither_ours_nor_timm_s_are_refused(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "copy")
    file = tmp_path / "copy" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": []}))
    with pytest.raises(ConvMAEError, match="architectures: Extra inputs are not permitted"):
        read_checkpoint(tmp_path / "copy")


LOAD = """
import sys
from safetensors.torch import load_file, save_file

def refuse(event, arguments):
    if event == "socket.connect" and arguments[1][0] != "127.0.0.1":
        raise RuntimeError(f"a connection to {arguments[1]}")

sys.addaudithook(refuse)
import timm
import convmae_deploy.timm

name, images, out = sys.argv[1:]
model = timm.create_model(f"hf-hub:{name}", pretrained=True).eval()
backbone = timm.create_model(f"hf-hub:{name}", pretrained=True, features_only=True).eval()
images = load_file(images)["images"]
save_file({"logits": model(images).detach(), "e1": backbone(images)[0].detach().contiguous()}, out)
"""


@pytest.mark.slow
def test_an_uploaded_folder_loads_from_a_hub(published: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"images": IMAGES}, tmp_path / "images.safetensors")
    with small_hub(published, "someone/golf") as address:
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "*"}
        arguments = ["someone/golf", str(tmp_path / "images.safetensors"), str(tmp_path / "out.safetensors")]
        command = [sys.executable, "-c", LOAD, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found, expected = load_file(tmp_path / "out.safetensors"), created(published)
    with torch.no_grad():
        torch.testing.assert_close(found["logits"], expected(IMAGES), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found["e1"], expected.encoder(IMAGES)[0], atol=1e-6, rtol=1e-6)


def hub_model(entry: str, *arguments: Any, **options: Any) -> Any:
    load: Any = torch.hub.load
    return load(str(ROOT), entry, *arguments, source="local", **options)


def test_torch_hub_has_an_entry_for_every_variant() -> None:
    variants = {f"convmae_{name}": timm.models.model_entrypoint(f"convmae_{name}") for name in MODELS}
    others = {"convmae_deploy", "convmae_checkpoint"}
    entries = {name: entry for name, entry in vars(hubconf).items() if name.startswith("convmae_")}
    assert {name: entry for name, entry in entries.items() if name not in others} == variants


@pytest.mark.slow
def test_torch_hub_makes_a_classifier_and_a_pyramid() -> None:
    with torch.device("meta"):
        model = hub_model("convmae_nano", num_classes=3, drop_path_rate=0.1)
        pyramid = hub_model("convmae_base", features_only=True)
    assert (model.num_classes, model.encoder.embed_dims) == (3, nano().embed_dims)
    assert pyramid.feature_info.reduction() == [4, 8, 16, 32]


@pytest.mark.slow
def test_torch_hub_opens_runs_and_hub_folders(run: Path, published: Path, tmp_path: Path) -> None:
    expected, _ = load_classifier(run)
    record = CheckpointRecord(kind="features", variant="nano", model=CONFIG)
    save_checkpoint(tmp_path / "encoder", expected.encoder.state_dict(), record)
    with torch.no_grad():
        for folder in (run, published):
            assert torch.equal(hub_model("convmae_checkpoint", str(folder))(IMAGES), expected(IMAGES))
        assert hub_model("convmae_checkpoint", str(tmp_path / "encoder"))(IMAGES).shape == (2, 192)
