"""Positions of tokens for another grid: what changes, what does not, and that the forward pass agrees."""

from dataclasses import replace

import pytest
import torch

from convmae_deploy.checkpoints.resizing import resize_positions
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import ConvMAE, ConvMAEConfig, DenseConfig, build_convmae

CONFIG = ConvMAEConfig(embed_dims=(8, 8, 16), depths=(1, 1, 3), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(96, 64))
FORMS = {
    "shared": DenseConfig(relative_position="shared", window_size=2, global_blocks=(1,)),
    "per_block": DenseConfig(relative_position="per_block"),
    "decomposed": DenseConfig(relative_position="decomposed", window_size=3, global_blocks=(0, 2)),
}


def random_encoder(config: ConvMAEConfig) -> ConvMAE:
    torch.manual_seed(0)
    encoder = build_convmae(config).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "position" in name:
                parameter.normal_()
    return encoder


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_resized_weights_compute_what_the_forward_pass_resizes_itself(form: str) -> None:
    old, new = (replace(CONFIG, dense=FORMS[form], image_size=size) for size in ((96, 64), (128, 160)))
    encoder, larger = random_encoder(old), build_convmae(new).eval()
    state, changes = resize_positions(encoder.state_dict(), old.dense, old.grid_size, new.grid_size)
    larger.load_state_dict(state)
    images = torch.randn(1, 3, 128, 160)
    torch.testing.assert_close(larger(images)[2], encoder(images)[2], rtol=1e-5, atol=1e-5)
    assert changes["pos_embed"] == "6 x 4 to 8 x 10, bicubic"
    expected = {
        "shared": {"global_position.table"},
        "per_block": {f"blocks3.{block}.attn.position.table" for block in range(3)},
        "decomposed": {f"blocks3.{block}.attn.position.rel_pos_{side}" for block in (0, 2) for side in "hw"},
    }[form]
    assert changes.keys() - {"pos_embed"} == expected


def test_relative_positions_with_a_size_of_their_own_stay() -> None:
    dense = DenseConfig(relative_position="per_block", relative_size=(256, 256))
    state = random_encoder(replace(CONFIG, dense=dense)).state_dict()
    resized, changes = resize_positions(
        {f"encoder.{name}": value for name, value in state.items()}, dense, (6, 4), (4, 4)
    )
    assert changes.keys() == {"encoder.pos_embed"}
    assert torch.equal(resized["encoder.blocks3.0.attn.position.table"], state["blocks3.0.attn.position.table"])


def test_positions_of_another_grid_are_refused_by_name() -> None:
    state = random_encoder(replace(CONFIG, dense=FORMS["per_block"])).state_dict()
    with pytest.raises(ConvMAEError, match="pos_embed must be for the 16 tokens"):
        resize_positions(state, FORMS["per_block"], (4, 4), (6, 6))
    state["blocks3.1.attn.position.table"] = torch.zeros(5, 2)
    with pytest.raises(ConvMAEError, match=r"blocks3.1.attn.position.table must have 77 rows, for 6 x 4 tokens"):
        resize_positions(state, FORMS["per_block"], (6, 4), (6, 6))
