"""Models out of checkpoints: round trips, other sizes, and what one of another kind says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from convmae_deploy.bundle.preprocessing import Preprocessing, standard_preprocessing
from convmae_deploy.checkpoints import (
    CheckpointRecord,
    load_classifier,
    load_encoder_state,
    load_pretraining,
    read_checkpoint,
    save_checkpoint,
)
from convmae_deploy.checkpoints.loading import load_segmenter, resized
from convmae_deploy.checkpoints.native import write_checkpoint_files
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models import build_convmae
from convmae_deploy.models.classifier import build_classifier
from convmae_deploy.models.convmae import nano
from convmae_deploy.models.positions import resize_position_embedding
from convmae_deploy.models.pretraining import PretrainingConfig, build_pretraining
from convmae_deploy.models.segmenter import SegmenterConfig, authors_dense, build_segmenter
from tests.checkpoints.conftest import CONFIG, RECORD

PRETRAINING = PretrainingConfig(
    decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_mlp_ratio=2.0, masking="token", norm_pix_loss=False
)
PRETRAINING_RECORD = CheckpointRecord(kind="pretraining", variant="custom", model=CONFIG, pretraining=PRETRAINING)


def test_a_classifier_comes_back_as_it_was_saved(checkpoint: Path) -> None:
    torch.manual_seed(0)
    original = build_classifier(CONFIG, num_classes=3, global_pool="token").eval()
    model, record = load_classifier(checkpoint)
    assert record == RECORD and record.model == CONFIG
    assert not model.training and model.global_pool == "token"
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(images), original(images))


def test_another_image_size_resizes_the_embedding_and_the_preprocessing(checkpoint: Path) -> None:
    stored = load_classifier(checkpoint)[0].encoder.pos_embed
    model, record = load_classifier(checkpoint, image_size=(128, 96))
    assert torch.equal(model.encoder.pos_embed, resize_position_embedding(stored, (4, 6), (8, 6)))
    assert model.encoder.grid_size == (8, 6)
    assert record.model.image_size == (128, 96)
    assert isinstance(record.preprocessing, Preprocessing)
    assert (record.preprocessing.crop, record.preprocessing.resize) == ((128, 96), (146, 109))


def test_no_photo_is_resized_beyond_what_a_manifest_takes() -> None:
    assert standard_preprocessing((3584, 4096)).resize == (4096, 4096)
    assert standard_preprocessing((224, 224)).resize == (256, 256)


def test_the_standard_preprocessing_stays_the_standard_one() -> None:
    state = {"pos_embed": torch.zeros(1, 64, 192)}
    standard = standard_preprocessing((128, 128))
    record = CheckpointRecord(kind="features", variant="nano", model=nano(), preprocessing=standard)
    preprocessing = resized(record, state, (224, 224))[0].preprocessing
    assert isinstance(preprocessing, Preprocessing) and preprocessing.resize == (256, 256)


def test_resizing_to_the_stored_size_changes_no_preprocessing() -> None:
    state = {"encoder.pos_embed": torch.zeros(1, 24, 32)}
    for cover in range(96, 400):
        preprocessing = Preprocessing(resize=(cover, cover), crop=(64, 96))
        record = RECORD.model_copy(update={"preprocessing": preprocessing})
        assert resized(record, state, (64, 96))[0] == record


def test_the_encoder_of_a_classifier_loads_without_its_head(checkpoint: Path) -> None:
    config, state = load_encoder_state(checkpoint, (64, 64))
    assert config.image_size == (64, 64)
    build_convmae(config).load_state_dict(state)


def test_weights_of_another_model_are_refused_by_name_and_shape(tmp_path: Path) -> None:
    state = build_classifier(CONFIG, num_classes=4).state_dict()
    save_checkpoint(tmp_path / "a", state, RECORD)
    with pytest.raises(ConvMAEError, match=r"2 tensors differ, first head.bias: expected \(3,\), found \(4,\)"):
        load_classifier(tmp_path / "a")


def test_an_encoder_is_no_classifier(tmp_path: Path) -> None:
    record = RECORD.model_copy(update={"kind": "features"})
    save_checkpoint(tmp_path / "a", build_convmae(CONFIG).state_dict(), record)
    with pytest.raises(ConvMAEError, match="must hold a classifier and holds: encoder"):
        load_classifier(tmp_path / "a")


@pytest.fixture
def pretraining_checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "pretraining", build_pretraining(CONFIG, PRETRAINING).state_dict(), PRETRAINING_RECORD)
    return tmp_path / "pretraining"


def test_a_pretraining_model_comes_back_as_it_was_saved(pretraining_checkpoint: Path) -> None:
    torch.manual_seed(0)
    original = build_pretraining(CONFIG, PRETRAINING).eval()
    model, record = load_pretraining(pretraining_checkpoint)
    assert record == PRETRAINING_RECORD and record.pretraining == PRETRAINING
    assert not model.training
    assert (model.cell_size, model.norm_pix_loss) == (4, False)
    images, kept = torch.randn(2, 3, 64, 96), torch.arange(96).repeat(2, 1)
    with torch.no_grad():
        assert torch.equal(model(images, kept), original(images, kept))


def test_another_image_size_resizes_both_embeddings_of_a_pretraining_model(pretraining_checkpoint: Path) -> None:
    stored = load_pretraining(pretraining_checkpoint)[0]
    model, record = load_pretraining(pretraining_checkpoint, image_size=(96, 64))
    assert record.model.image_size == (96, 64) and model.grid_size == (6, 4)
    assert torch.equal(model.decoder_pos_embed, resize_position_embedding(stored.decoder_pos_embed, (4, 6), (6, 4)))
    assert torch.equal(model.encoder.pos_embed, resize_position_embedding(stored.encoder.pos_embed, (4, 6), (6, 4)))


def test_a_pretraining_checkpoint_from_before_its_decoder_was_recorded_still_gives_its_encoder(
    pretraining_checkpoint: Path,
) -> None:
    config = pretraining_checkpoint / "config.json"
    content = json.loads(config.read_text())
    del content["pretraining"]
    config.write_text(json.dumps(content))
    found, state = load_encoder_state(pretraining_checkpoint, (64, 64))
    build_convmae(found).load_state_dict(state)
    with pytest.raises(ConvMAEError, match="import the original file again"):
        load_pretraining(pretraining_checkpoint)


def test_a_classifier_is_no_pretraining_model(checkpoint: Path) -> None:
    with pytest.raises(ConvMAEError, match="must hold a pretraining model with its decoder and holds: classifier"):
        load_pretraining(checkpoint)


def test_a_decoder_of_another_size_than_the_config_is_refused(tmp_path: Path) -> None:
    other = PretrainingConfig(decoder_width=32, decoder_depth=1, decoder_heads=2, decoder_mlp_ratio=2.0)
    save_checkpoint(tmp_path / "a", build_pretraining(CONFIG, other).state_dict(), PRETRAINING_RECORD)
    with pytest.raises(ConvMAEError, match=r"first decoder_blocks.0.attn.proj.bias: expected \(16,\), found \(32,\)"):
        load_pretraining(tmp_path / "a")


@pytest.mark.parametrize("name", ["encoder.pos_embed", "decoder_pos_embed"])
def test_an_embedding_of_another_size_than_the_config_is_refused_before_it_is_resized(
    name: str, pretraining_checkpoint: Path
) -> None:
    record, state = read_checkpoint(pretraining_checkpoint)
    state[name] = state[name][:, :23]
    write_checkpoint_files(pretraining_checkpoint, state, record)
    with pytest.raises(ConvMAEError, match=rf"{name} must be for the 24 tokens .* found the shape \(1, 23,"):
        load_pretraining(pretraining_checkpoint, image_size=(64, 64))


def test_an_encoder_with_the_norm_of_its_pretraining_loads_without_it(tmp_path: Path) -> None:
    encoder = build_convmae(CONFIG).state_dict()
    norm = {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
    save_checkpoint(tmp_path / "a", encoder | norm, CheckpointRecord(kind="features", variant="custom", model=CONFIG))
    assert load_encoder_state(tmp_path / "a", (64, 96))[1].keys() == encoder.keys()


def test_a_segmenter_comes_back_as_it_was_saved_and_for_windows_of_another_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, dense=authors_dense())
    segmenter = SegmenterConfig(channels=8, auxiliary_channels=4, e4="convolution")
    original = build_segmenter(config, segmenter, num_classes=3).eval()
    record = CheckpointRecord(
        kind="segmentation", variant="custom", model=config, segmenter=segmenter, classes=("a", "b", "c")
    )
    save_checkpoint(tmp_path / "checkpoint", original.state_dict(), record)
    model, found = load_segmenter(tmp_path / "checkpoint")
    assert found == record and not model.training
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(images), original(images))
    larger, found = load_segmenter(tmp_path / "checkpoint", image_size=(128, 96))
    assert found.model.image_size == (128, 96)
    assert larger.state_dict()["encoder.blocks3.0.attn.position.table"].shape == (15 * 11, 4)
    assert larger.state_dict()["decode_head.bottleneck.bn.num_batches_tracked"].dtype == torch.int64


def test_a_classifier_is_no_segmenter(checkpoint: Path) -> None:
    with pytest.raises(ConvMAEError, match=r"must hold a segmenter and holds: classifier; train one first"):
        load_segmenter(checkpoint)
