"""The encoders of the authors' detectors and segmenter, against what their code gave for the same weights."""

import pytest
import torch
from torch import Tensor

from convmae_deploy.checkpoints.original_keys import POINTWISE_KEY, dense_encoder_name, squeeze_pointwise
from convmae_deploy.models.convmae import ConvMAE, ConvMAEConfig, DenseConfig, build_convmae
from tests.original_files import relative_error
from tests.recorded_pretraining import needs_recorded_passes, pass_tensor, reference_folder

DETECTOR = ConvMAEConfig(
    embed_dims=(32, 48, 96),
    depths=(1, 1, 11),
    mlp_ratios=(2, 3, 2),
    num_heads=4,
    image_size=(256, 256),
    dense=DenseConfig(relative_position="shared", window_size=4, global_blocks=(0, 3, 6, 10)),
)
VITDET = ConvMAEConfig(
    embed_dims=(32, 48, 96),
    depths=(1, 1, 4),
    mlp_ratios=(3, 3, 3),
    num_heads=4,
    image_size=(224, 224),
    dense=DenseConfig(
        relative_position="decomposed",
        relative_size=(256, 256),
        window_size=5,
        global_blocks=(1,),
        conv_norm_eps=1e-6,
    ),
)
SEGMENTER = ConvMAEConfig(
    embed_dims=(32, 48, 96),
    depths=(1, 1, 3),
    mlp_ratios=(2, 3, 4),
    num_heads=4,
    image_size=(128, 128),
    dense=DenseConfig(relative_position="per_block", layer_scale=True, transformer_norm_eps=1e-5),
)


def recorded_encoder(name: str, prefix: str, config: ConvMAEConfig) -> ConvMAE:
    """The encoder with the recorded weights; every key of the file but indices and what follows the encoder is used."""
    file = torch.load(reference_folder() / f"{name}.pth", weights_only=True)
    state: dict[str, Tensor] = {}
    for source, value in (file.get("model") or file["state_dict"]).items():
        key = dense_encoder_name(source.removeprefix(prefix))
        if not key.endswith("relative_position_index") and not key.startswith("fpn."):
            state[key] = squeeze_pointwise(key, value) if POINTWISE_KEY.fullmatch(key) else value
    encoder = build_convmae(config)
    encoder.load_state_dict(state)
    return encoder.eval()


@needs_recorded_passes
@torch.no_grad()
def test_the_mask_rcnn_encoder_gives_the_authors_maps() -> None:
    maps = recorded_encoder("det_backbone", "backbone.bottom_up.", DETECTOR)(pass_tensor("det_backbone", "input"))
    for level, found in enumerate(maps):
        assert relative_error(found, pass_tensor("det_backbone", f"s{level}")) <= 1e-5


@needs_recorded_passes
@torch.no_grad()
@pytest.mark.parametrize("entries", [2**25, 1])  # the whole bias at once, and one row of it at a time
def test_the_vitdet_encoder_gives_the_authors_map_with_padded_windows(
    entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convmae_deploy.models.attention.BIAS_ENTRIES", entries)
    found = recorded_encoder("det2_backbone", "backbone.net.", VITDET)(pass_tensor("det2_backbone", "input"))[2]
    assert relative_error(found, pass_tensor("det2_backbone", "last_feat")) <= 1e-5


@needs_recorded_passes
@torch.no_grad()
def test_the_upernet_encoder_gives_the_authors_first_three_maps() -> None:
    maps = recorded_encoder("seg_backbone", "backbone.", SEGMENTER)(pass_tensor("seg_backbone", "input"))
    for level, found in enumerate(maps[:3]):
        assert relative_error(found, pass_tensor("seg_backbone", f"out{level}")) <= 1e-5
