"""The baseline goes through the programs that ConvMAE goes through, and no further."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convmae_deploy.checkpoints import read_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.hub import write_hub_folder
from convmae_deploy.models import vit
from export.tasks import open_task
from tests.photo_folders import make_photo_folder
from tests.training_runs import lines_of
from training import finetune, linprobe, pretrain, reconstruct

SIZE = (64, 64)


@pytest.mark.slow
def test_mae_pretrains_a_vit_that_is_finetuned_probed_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = vit.vit(width=16, depth=2, num_heads=2, image_size=SIZE)
    monkeypatch.setitem(vit.VITS, "vit_nano", lambda: small)
    photos = make_photo_folder(tmp_path / "photos")

    def tried(preset: Any, program: str) -> dict[str, Any]:
        """A preset, small."""
        optimisation = replace(preset.optimisation, epochs=2, warmup_epochs=0.5, batch_size=4, micro_batch_size=4)
        run = replace(preset.run, out=tmp_path / program, workers=0, precision="fp32")
        return {"data": photos, "image_size": SIZE, "optimisation": optimisation, "run": run}

    nano = pretrain.nano()  # its variant alone is changed: fusion, which a ViT has no stages for, goes with it
    begun = replace(nano, variant="vit_nano", **{**tried(nano, "mae"), "data": str(photos)})
    assert pretrain.prepare(begun).fit() == 0
    record, state = read_checkpoint(tmp_path / "mae")
    assert record.variant == "vit_nano" and record.model == small
    assert record.pretraining is not None and not record.pretraining.multi_scale
    assert "encoder.blocks3.1.mlp.fc2.weight" in state and not any("output_decode" in name for name in state)

    tuned = finetune.PRESETS["vit_nano"][1]
    tuned = replace(tuned, init=tmp_path / "mae", train_size=None, **tried(tuned, "tuned"))
    assert finetune.prepare(tuned).fit() == 0
    probed = linprobe.PRESETS["vit_nano"][1]
    probed = replace(probed, init=tmp_path / "mae", cached_views=1, **tried(probed, "probed"))
    assert linprobe.prepare(probed).fit() == 0
    assert all(line["val_top1"] >= 0 for program in ("tuned", "probed") for line in lines_of(tmp_path / program))

    picture = reconstruct.ReconstructConfig(
        checkpoint=tmp_path / "mae", photos=(photos / "val",), out=tmp_path / "picture.png"
    )
    reconstruct.reconstruct(picture)
    assert (tmp_path / "picture.png").is_file()

    for task in (None, "features"):
        with pytest.raises(ConvMAEError, match="holds a plain ViT, the baseline to compare with"):
            open_task(tmp_path / "tuned", None, task)
    with pytest.raises(ConvMAEError, match="must hold one of the variants that timm knows by name"):
        write_hub_folder(tmp_path / "tuned", tmp_path / "hub")
