"""The key remap, on states without a file around them."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from convmae_deploy.checkpoints.original_detector import infer_detector
from convmae_deploy.checkpoints.original_keys import convert_keys, fold_probe_head, without_class_row
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models import MODELS, build_convmae
from convmae_deploy.models.classifier import build_classifier
from convmae_deploy.models.detector import DETECTORS, build_detector
from convmae_deploy.models.segmenter import SegmenterConfig, authors_dense, build_segmenter
from tests.original_files import (
    REFERENCE,
    classifier_state,
    encoder_only_state,
    encoder_state,
    pretraining_state,
    probe_state,
)
from tests.recorded_pretraining import needs_recorded_passes, reference_folder


def base_state(file: str) -> dict[str, Tensor]:
    shapes = json.loads((REFERENCE / f"{file}.json").read_text())
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes_of(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def test_the_recorded_keys_of_a_finetuned_base_become_our_classifier() -> None:
    with torch.device("meta"):
        model = build_classifier(MODELS["base"](), num_classes=1000)
    converted = convert_keys(base_state("keys_finetune_B"))
    assert converted.kind == "classification"
    assert shapes_of(converted.state) == shapes_of(model.state_dict())
    assert not converted.dropped and not converted.initial


def test_the_recorded_keys_of_a_pretrained_base_become_our_encoder_and_a_decoder() -> None:
    with torch.device("meta"):
        model = build_convmae(MODELS["base"]())
    original = base_state("keys_pretrain_B")
    converted = convert_keys(original)
    encoder = {
        name.removeprefix("encoder."): value for name, value in converted.state.items() if name.startswith("encoder.")
    }
    assert converted.kind == "pretraining"
    assert shapes_of(encoder) == shapes_of(model.state_dict())
    assert len(converted.state) == len(original) == 313
    assert converted.state["decoder_blocks.7.mlp.fc2.weight"].shape == (512, 2048)
    assert converted.state["stage1_output_decode.weight"].shape == (768, 256, 4, 4)
    assert not converted.dropped


@pytest.mark.parametrize(
    "state", [encoder_only_state(), classifier_state(), probe_state("firsttoken"), pretraining_state()]
)
def test_every_key_is_kept_renamed_folded_or_dropped(state: dict[str, Tensor]) -> None:
    converted = convert_keys(state | {"cls_token": torch.zeros(1, 1, 96), "mystery": torch.zeros(3)})
    same = {name for name in state if name in converted.state}
    groups = [same, set(converted.renamed), set(converted.folded), set(converted.dropped)]
    assert set().union(*groups) == state.keys() | {"cls_token", "mystery"}
    assert sum(map(len, groups)) == len(state) + 2
    assert "class token" in converted.dropped["cls_token"]
    assert "unknown" in converted.dropped["mystery"]


@pytest.mark.parametrize("prefix", ["module.", "encoder.", "backbone.", "module.encoder."])
def test_prefixes_of_the_encoder_are_stripped(prefix: str) -> None:
    prefixed = {prefix + name: value for name, value in encoder_only_state().items()}
    plain = convert_keys(encoder_only_state())
    converted = convert_keys(prefixed)
    assert converted.state.keys() == plain.state.keys() and not converted.dropped


def test_a_prefix_of_the_whole_model_is_stripped_from_the_head_too() -> None:
    state = {f"module.encoder.{name}": value for name, value in encoder_state().items()}
    state |= {f"module.{name}": value for name, value in classifier_state().items() if name.startswith(("head", "fc_"))}
    assert convert_keys(state).state.keys() == convert_keys(classifier_state()).state.keys()


def test_two_encoders_in_one_file_are_refused() -> None:
    state = {f"{copy}.{name}": value for copy in ("student", "teacher") for name, value in encoder_state().items()}
    with pytest.raises(ConvMAEError, match="one ConvMAE encoder .* found 2"):
        convert_keys(state)


def test_one_name_with_and_without_prefix_is_refused() -> None:
    state = {f"module.{name}": value for name, value in encoder_state().items()}
    with pytest.raises(ConvMAEError, match="pos_embed twice"):
        convert_keys(state | {"pos_embed": state["module.pos_embed"]})


@pytest.mark.parametrize(
    "name",
    [
        "backbone.fpn_lateral2.weight",
        "backbone.simfp_2.0.weight",
        "backbone.blocks3.0.attn.rel_pos_h",
        "backbone.blocks3.0.gamma_1",
    ],
)
def test_states_of_detectors_and_segmenters_without_heads_are_refused(name: str) -> None:
    state = {f"backbone.{key}": value for key, value in encoder_state().items()}
    with pytest.raises(
        ConvMAEError, match="without its heads .* only pretraining, finetuning, linear-probe, detection and segm"
    ):
        convert_keys(state | {name: torch.zeros(2)})


@needs_recorded_passes
def test_the_recorded_keys_of_the_authors_segmenter_become_ours_one_for_one() -> None:
    shapes = json.loads((reference_folder() / "keys_SEG.json").read_text())
    original = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with torch.device("meta"):
        config = replace(MODELS["base"](), image_size=(512, 512), dense=authors_dense())
        model = build_segmenter(config, SegmenterConfig(e4="convolution"), num_classes=150)
    converted = convert_keys(original)
    assert converted.kind == "segmentation"
    assert shapes_of(converted.state) == shapes_of(model.state_dict())
    assert len(original) == len(converted.state) + len(converted.dropped)
    assert converted.dropped.keys() == {f"backbone.blocks3.{n}.attn.relative_position_index" for n in range(11)}


def test_pointwise_convolutions_become_matrices_with_the_same_values() -> None:
    state = encoder_state()
    converted = convert_keys(state)
    assert len(converted.reshaped) == 8
    for name in converted.reshaped:
        assert state[name].ndim == 4
        assert torch.equal(converted.state[name], state[name].flatten(1))
    assert converted.state["blocks1.0.attn.weight"].shape == (32, 1, 5, 5)


def test_pointwise_weights_that_are_matrices_already_are_kept() -> None:
    state = convert_keys(encoder_state()).state
    converted = convert_keys(state)
    assert converted.reshaped == () and converted.renamed == {}
    assert converted.state.keys() == state.keys()


def test_the_folded_probe_head_equals_batch_norm_and_linear() -> None:
    state = probe_state("globalpool")
    norm = torch.nn.BatchNorm1d(96, affine=False, eps=1e-6)
    norm.load_state_dict({name.removeprefix("head.0."): value for name, value in state.items() if "head.0." in name})
    norm.eval()
    features = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    expected = norm(features) @ state["head.1.weight"].T + state["head.1.bias"]
    head = {name: value for name, value in state.items() if name.startswith("head.") and "tracked" not in name}
    folded = fold_probe_head(head)
    torch.testing.assert_close(features @ folded["head.weight"].T + folded["head.bias"], expected)


def test_a_probe_head_with_an_unknown_part_is_refused() -> None:
    with pytest.raises(ConvMAEError, match=r"head must be .* found .*head\.0\.weight"):
        convert_keys(probe_state("globalpool") | {"head.0.weight": torch.ones(96)})


def test_a_head_without_any_norm_gets_a_fresh_one_and_says_so() -> None:
    state = {name: value for name, value in classifier_state().items() if not name.startswith("fc_norm")}
    converted = convert_keys(state)
    assert converted.global_pool == "avg"
    assert set(converted.initial) == {"fc_norm.weight", "fc_norm.bias"}
    assert torch.equal(converted.state["fc_norm.weight"], torch.ones(96))
    assert torch.equal(converted.state["fc_norm.bias"], torch.zeros(96))


def test_an_encoder_alone_keeps_the_norm_that_a_probe_of_the_first_token_needs() -> None:
    state = encoder_only_state()
    converted = convert_keys(state)
    assert converted.kind == "features"
    assert torch.equal(converted.state["norm.weight"], state["norm.weight"])
    assert torch.equal(converted.state["norm.bias"], state["norm.bias"])


def test_fc_norm_wins_over_the_pretraining_norm() -> None:
    norm = {name: value for name, value in encoder_only_state().items() if name.startswith("norm.")}
    converted = convert_keys(classifier_state() | norm)
    assert converted.global_pool == "avg"
    assert set(converted.dropped) == {"norm.weight", "norm.bias"}
    assert torch.equal(converted.state["fc_norm.weight"], classifier_state()["fc_norm.weight"])


def test_the_class_row_of_a_position_embedding_is_removed_and_reported() -> None:
    state = encoder_only_state()
    row = torch.full((1, 1, 96), 9.0)
    with_row = state | {"cls_token": row, "pos_embed": torch.cat([row, state["pos_embed"]], dim=1)}
    converted = convert_keys(with_row)
    assert torch.equal(converted.state["pos_embed"], state["pos_embed"])
    assert {"cls_token", "pos_embed[:, 0]"} <= set(converted.dropped)


@pytest.mark.parametrize(("tokens", "expected"), [(196, 196), (197, 196), (195, 195), (4, 4), (5, 4), (1, 1)])
def test_only_one_plus_a_square_has_a_class_row(tokens: int, expected: int) -> None:
    assert without_class_row(torch.zeros(1, tokens, 8)).shape[1] == expected


@needs_recorded_passes
@pytest.mark.parametrize(("file", "preset", "indices"), [("keys_DET", "base_fpn", 2), ("keys_DET2", "base_simple", 0)])
def test_the_recorded_keys_of_the_authors_detectors_become_ours_one_for_one(
    file: str, preset: str, indices: int
) -> None:
    shapes = json.loads((reference_folder() / f"{file}.json").read_text())
    original = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config, detector = DETECTORS[preset]()
    with torch.device("meta"):
        model = build_detector(config, detector, num_classes=80)
    converted = convert_keys(original)
    assert converted.kind == "detection"
    assert shapes_of(converted.state) == shapes_of(model.state_dict())
    assert len(original) == len(converted.state) + len(converted.dropped)
    assert len(converted.dropped) == indices and all("relative_position_index" in name for name in converted.dropped)
    assert infer_detector(converted.state, config.grid_size) == (detector, config.dense, 80)
