"""Importing files: what is read, what is inferred, what is refused and how."""

import argparse
import math
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.checkpoints import import_original, load_classifier, load_pretraining, read_checkpoint
from convmae_deploy.checkpoints.original_configs import infer_config
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models import MODELS, ConvMAEClassifier, build_convmae
from convmae_deploy.models.positions import resize_position_embedding
from convmae_deploy.models.pretraining import PretrainingConfig
from tests.original_files import (
    CONFIG,
    DECODER_WIDTH,
    classifier_state,
    encoder_only_state,
    encoder_state,
    pretraining_state,
    probe_state,
    training_checkpoint,
    write_pth,
)


def meta_state(variant: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_convmae(MODELS[variant]()).state_dict()


def assert_one_sentence(error: pytest.ExceptionInfo[ConvMAEError]) -> None:
    message = str(error.value)
    assert "\n" not in message and 20 < len(message) < 400


def test_dimensions_are_inferred_from_shapes(tmp_path: Path) -> None:
    source = write_pth(tmp_path / "original.pth", {"model": classifier_state()})
    report = import_original(source, tmp_path / "out", num_heads=4)
    record, _ = read_checkpoint(tmp_path / "out")
    assert record.model == CONFIG == report.record.model
    assert (record.kind, record.variant, record.global_pool) == ("classification", "custom", "avg")
    assert record.classes == tuple("0123456789")
    assert isinstance(record.preprocessing, Preprocessing)
    assert (record.preprocessing.resize, record.preprocessing.crop) == ((256, 256), (224, 224))
    assert "ImageNet-1K" in record.licence.name
    assert record.provenance["source"] == "original.pth"


@pytest.mark.parametrize("name", list(MODELS))
def test_every_variant_is_recognised_by_its_dimensions(name: str) -> None:
    state = meta_state(name)
    found, config = infer_config(state, variant=None, num_heads=None, image_size=None)
    assert (found, config) == (name, MODELS[name]())


def test_another_kernel_is_inferred_and_makes_it_no_known_variant() -> None:
    with torch.device("meta"):
        state = build_convmae(replace(MODELS["small"](), kernel_size=7)).state_dict()
    with pytest.raises(ConvMAEError, match="no known variants"):
        infer_config(state, variant=None, num_heads=None, image_size=None)
    name, config = infer_config(state, variant="small", num_heads=None, image_size=None)
    assert (name, config) == ("custom", replace(MODELS["small"](), kernel_size=7))


def test_heads_that_a_variant_does_not_have_make_it_custom() -> None:
    name, config = infer_config(meta_state("small"), variant=None, num_heads=12, image_size=None)
    assert (name, config.num_heads) == ("custom", 12)


def test_a_named_variant_gives_its_heads_to_other_dimensions() -> None:
    shallow = {name: value for name, value in meta_state("small").items() if not name.startswith("blocks3.10.")}
    with pytest.raises(ConvMAEError, match="--num-heads.*--variant"):
        infer_config(shallow, variant=None, num_heads=None, image_size=None)
    name, config = infer_config(shallow, variant="small", num_heads=None, image_size=None)
    assert (name, config.num_heads, config.depths) == ("custom", 6, (2, 2, 10))


@pytest.mark.parametrize(
    ("variant", "num_heads", "message"),
    [
        ("enormous", None, "unknown variant 'enormous'; choose one of nano"),
        ("base", None, "base is 768 wide in stage 3 and the file 384"),
        ("small", 12, "small has 6 heads, not 12"),
        (None, 7, r"multiple of num_heads \(7\)"),
    ],
)
def test_options_that_do_not_fit_the_file_are_refused(variant: str | None, num_heads: int | None, message: str) -> None:
    with pytest.raises(ConvMAEError, match=message):
        infer_config(meta_state("small"), variant=variant, num_heads=num_heads, image_size=None)


def test_the_report_says_everything_one_fact_a_line(tmp_path: Path) -> None:
    state = probe_state("firsttoken") | {"cls_token": torch.zeros(1, 1, 96), "mask_token": torch.zeros(1, 1, 32)}
    source = write_pth(tmp_path / "probe.pth", training_checkpoint(state))
    report = import_original(source, tmp_path / "out", num_heads=4, image_size=(64, 96))
    lines = report.lines()
    assert lines[0] == f'{source} is a linear probe file, weights under "model"'
    assert lines[1] == "variant custom: channels 32-48-96, blocks 1-1-2, MLP ratios 2-4-3, 4 heads, kernels of 5"
    assert "image 64 x 96" in lines
    assert "kept 71 tensors, 69 of them under a new name" in lines
    assert "reshaped 8 weights of 1x1 convolutions to matrices" in lines
    assert "resized encoder.pos_embed: 14 x 14 to 4 x 6, bicubic" in lines
    assert "left behind: optimizer, epoch, scaler, args" in lines
    assert "classes named 0 to 9: the file has no names" in lines
    for dropped in ("cls_token", "mask_token", "head.0.num_batches_tracked"):
        assert sum(line.startswith(f"dropped {dropped}: ") for line in lines) == 1
    assert not any("\n" in line for line in lines)


def test_a_fresh_norm_is_reported_and_stored(tmp_path: Path) -> None:
    state = {name: value for name, value in classifier_state().items() if not name.startswith("fc_norm")}
    report = import_original(write_pth(tmp_path / "a.pth", state), tmp_path / "out", num_heads=4)
    assert sum(line.startswith("left at its initial value fc_norm.") for line in report.lines()) == 2
    assert report.kept == len(state)
    model, _ = load_classifier(tmp_path / "out")
    assert torch.equal(model.fc_norm.weight, torch.ones(96))


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "module"])
def test_weights_are_found_bare_and_under_each_wrapper(wrapper: str | None, tmp_path: Path) -> None:
    content = {wrapper: encoder_only_state()} if wrapper else encoder_only_state()
    report = import_original(write_pth(tmp_path / "a.pth", content), tmp_path / "out", num_heads=4)
    assert (report.file.wrapper, report.keys.kind) == (wrapper or "", "features")
    assert (report.kept, report.dropped) == (len(encoder_only_state()), {})


def test_the_image_size_resizes_every_position_embedding(tmp_path: Path) -> None:
    state = pretraining_state()
    report = import_original(write_pth(tmp_path / "a.pth", state), tmp_path / "out", num_heads=4, image_size=(256, 160))
    record, tensors = read_checkpoint(tmp_path / "out")
    assert (record.kind, record.model.image_size) == ("pretraining", (256, 160))
    for name, original in {"encoder.pos_embed": "pos_embed", "decoder_pos_embed": "decoder_pos_embed"}.items():
        assert torch.equal(tensors[name], resize_position_embedding(state[original], (14, 14), (16, 10)))
        assert report.resized[name] == "14 x 14 to 16 x 10, bicubic"
    assert torch.equal(tensors["decoder_pred.weight"], state["decoder_pred.weight"])


def test_a_classifier_for_another_size_keeps_the_crop_share(tmp_path: Path) -> None:
    source = write_pth(tmp_path / "a.pth", classifier_state())
    import_original(source, tmp_path / "out", num_heads=4, image_size=(96, 64))
    model, record = load_classifier(tmp_path / "out")
    assert isinstance(record.preprocessing, Preprocessing)
    assert (record.preprocessing.crop, record.preprocessing.resize) == ((96, 64), (109, 73))
    assert model(torch.zeros(1, 3, 96, 64)).shape == (1, 10)


def test_an_odd_grid_needs_an_image_size(tmp_path: Path) -> None:
    state = encoder_state() | {"pos_embed": torch.zeros(1, 15 * 15, 96)}
    source = write_pth(tmp_path / "a.pth", state)
    with pytest.raises(ConvMAEError, match="240 x 240 pixels.*--image-size"):
        import_original(source, tmp_path / "out", num_heads=4)
    report = import_original(source, tmp_path / "out", num_heads=4, image_size=(224, 224))
    assert report.record.model.grid_size == (14, 14)


def test_half_precision_weights_are_stored_as_float32_and_reported(tmp_path: Path) -> None:
    half = {name: value.half() for name, value in encoder_state().items()}
    report = import_original(write_pth(tmp_path / "a.pth", half), tmp_path / "out", num_heads=4)
    _, tensors = read_checkpoint(tmp_path / "out")
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    assert f"cast {len(half)} tensors from float16 to float32" in report.lines()


def test_tensors_that_share_memory_are_imported(tmp_path: Path) -> None:
    state = encoder_state()
    state["blocks3.1.norm1.weight"] = state["blocks3.0.norm1.weight"]
    import_original(write_pth(tmp_path / "a.pth", state), tmp_path / "out", num_heads=4)
    assert torch.equal(*(read_checkpoint(tmp_path / "out")[1][f"blocks3.{n}.norm1.weight"] for n in (0, 1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks3.0.attn.qkv.bias": None}, r"1 missing \(first blocks3.0.attn.qkv.bias\)"),
        ({"blocks3.0.attn.window": torch.zeros(2)}, r"1 not understood \(first blocks3.0.attn.window\)"),
        ({"blocks3.0.norm1.bias": torch.zeros(95)}, r"1 of another shape \(first blocks3.0.norm1.bias\)"),
        ({"patch_embed4.bias": torch.full((96,), math.nan)}, r"1 not finite or not dense \(first patch_embed4.bias\)"),
        ({"patch_embed1.proj.weight": torch.zeros(32, 3, 8, 8)}, "kernels of 4, 2 and 2"),
        ({"pos_embed": torch.zeros(1, 14 * 15, 96)}, "square grid; found 210 tokens"),
        ({"pos_embed": torch.zeros(196, 96)}, "pos_embed must be a tensor with 3 axes"),
        ({"blocks1.0.conv1.weight": torch.zeros(32, 32, 3, 3)}, "must be a 1x1 convolution"),
        ({"blocks2.0.mlp.fc1.weight": None}, "blocks2.0.mlp.fc1.weight must be a tensor"),
        ({"blocks1.0.attn.weight": torch.zeros(32, 1, 4, 4)}, "kernel_size must be odd and positive; got 4"),
        ({"blocks1.0.attn.weight": torch.zeros(32, 1, 7, 7)}, r"1 of another shape \(first blocks2.0.attn.weight\)"),
        ({"norm.weight": torch.ones(96)}, r"1 missing \(first norm.bias\)"),
    ],
)
def test_an_encoder_that_is_not_exactly_a_convmae_is_refused(
    changes: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    state = {name: value for name, value in (encoder_state() | changes).items() if value is not None}
    source = write_pth(tmp_path / "a.pth", state)
    with pytest.raises(ConvMAEError, match=message) as error:
        import_original(source, tmp_path / "out", num_heads=4)
    assert_one_sentence(error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_blocks.0.mlp.fc2.bias": None}, r"1 missing \(first decoder_blocks.0.mlp.fc2.bias\)"),
        ({"decoder_blocks.0.attn.scale": torch.ones(1)}, r"1 not understood \(first decoder_blocks.0.attn.scale\)"),
        ({"decoder_pred.weight": torch.zeros(192, 32)}, r"1 of another shape \(first decoder_pred.weight\)"),
        ({"stage1_output_decode.weight": torch.zeros(96, 32, 2, 2)}, r"shape \(first stage1_output_decode.weight\)"),
        ({"mask_token": torch.zeros(1, 1, 33)}, r"1 of another shape \(first mask_token\)"),
        ({"norm.weight": torch.ones(32)}, r"1 of another shape \(first norm.weight\)"),
        ({"decoder_embed.weight": torch.zeros(30, 96)}, r"decoder_width must be a multiple of decoder_heads \(4\)"),
        ({"decoder_blocks.0.mlp.fc1.weight": None}, "decoder_blocks.0.mlp.fc1.weight must be a tensor"),
    ],
)
def test_a_decoder_that_does_not_fit_together_is_refused(
    changes: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    state = {name: value for name, value in (pretraining_state() | changes).items() if value is not None}
    with pytest.raises(ConvMAEError, match=f"a.pth: .*{message}") as error:
        import_original(write_pth(tmp_path / "a.pth", state), tmp_path / "out", num_heads=4)
    assert_one_sentence(error)
    assert not (tmp_path / "out").exists()


def test_a_full_pretraining_file_becomes_a_model_that_can_be_rebuilt(tmp_path: Path) -> None:
    state = pretraining_state()
    report = import_original(write_pth(tmp_path / "a.pth", state), tmp_path / "out", num_heads=4)
    model, record = load_pretraining(tmp_path / "out")
    assert record.pretraining == report.record.pretraining
    assert record.pretraining == PretrainingConfig(
        decoder_width=DECODER_WIDTH, decoder_depth=1, decoder_heads=4, decoder_mlp_ratio=2.0
    )
    assert torch.equal(model.state_dict()["decoder_pred.weight"], state["decoder_pred.weight"])
    assert torch.equal(model.norm.weight, state["norm.weight"])
    lines = report.lines()
    assert "decoder 32 wide, 1 blocks, MLP ratio 2, 4 heads" in lines
    assert "assumed decoder_heads 4, as in the encoder: the file does not hold it" in lines
    assert "assumed masking block, as in the authors' recipe: the file does not hold it" in lines
    assert sum(line.startswith("assumed ") for line in lines) == 4


def test_a_decoder_as_wide_as_the_authors_has_their_heads(tmp_path: Path) -> None:
    state = pretraining_state(decoder_width=512)
    report = import_original(write_pth(tmp_path / "a.pth", state), tmp_path / "out", num_heads=4)
    assert report.record.pretraining is not None and report.record.pretraining.decoder_heads == 16
    assert "assumed decoder_heads 16, as in the authors' code: the file does not hold it" in report.lines()


def test_the_loss_is_that_of_the_arguments_in_the_file(tmp_path: Path) -> None:
    content = {
        "model": pretraining_state(),
        "args": argparse.Namespace(norm_pix_loss=False, mask_ratio=0.6),
    }
    report = import_original(write_pth(tmp_path / "a.pth", content), tmp_path / "out", num_heads=4)
    assert report.record.pretraining is not None
    assert (report.record.pretraining.norm_pix_loss, report.record.pretraining.mask_ratio) == (False, 0.6)
    assert set(report.assumed) == {"decoder_heads", "masking"}
    content["args"] = argparse.Namespace(norm_pix_loss="no", mask_ratio=75.0)
    report = import_original(write_pth(tmp_path / "b.pth", content), tmp_path / "b", num_heads=4)
    assert report.record.pretraining is not None
    assert (report.record.pretraining.norm_pix_loss, report.record.pretraining.mask_ratio) == (True, 0.75)
    assert set(report.assumed) == {"decoder_heads", "masking", "norm_pix_loss", "mask_ratio"}


class RunsCode:
    """Unpickling creates a folder: the side effect that must not happen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_file_that_would_run_code_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    for number, old_format in enumerate((False, True)):
        folder, source = tmp_path / f"made{number}", tmp_path / f"{number}.pth"
        content = {"model": encoder_state(), "args": RunsCode(folder)}
        torch.save(content, source, _use_new_zipfile_serialization=not old_format)
        with pytest.raises(ConvMAEError, match=r"would have to run posix\.mkdir") as error:
            import_original(source, tmp_path / "out")
        assert_one_sentence(error)
        assert not folder.exists() and not (tmp_path / "out").exists()
    raw = tmp_path / "raw.pth"
    raw.write_bytes(pickle.dumps({"model": RunsCode(tmp_path / "raw")}))
    with pytest.raises(ConvMAEError):
        import_original(raw, tmp_path / "out")
    assert not (tmp_path / "raw").exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    source = write_pth(tmp_path / "model.pth", {"model": build_convmae(CONFIG)})
    with pytest.raises(ConvMAEError, match="would have to run convmae_deploy.models.convmae.ConvMAE to be read"):
        import_original(source, tmp_path / "out")


def test_the_list_of_allowed_types_is_not_widened_for_others(tmp_path: Path) -> None:
    import_original(write_pth(tmp_path / "a.pth", training_checkpoint(encoder_state())), tmp_path / "out", num_heads=4)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    whole = write_pth(tmp_path / "whole.pth", encoder_state()).read_bytes()
    files = {
        "truncated.pth": whole[: len(whole) // 2],
        "empty.pth": b"",
        "photo.pth": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "text.pth": b"not a checkpoint",
    }
    for name, content in files.items():
        source = tmp_path / name
        source.write_bytes(content)
        with pytest.raises(ConvMAEError, match="not a readable PyTorch checkpoint") as error:
            import_original(source, tmp_path / "out")
        assert_one_sentence(error)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConvMAEError, match="is part of a checkpoint; give the folder that it lies in"):
        import_original(tmp_path / "model.safetensors", tmp_path / "out")
    with pytest.raises(ConvMAEError, match="found nothing there"):
        import_original(tmp_path / "absent.pth", tmp_path / "out")
    with pytest.raises(ConvMAEError, match="found a folder"):
        import_original(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("content", [[1, 2], {"model": {"fc.weight": torch.zeros(2)}}, {"epoch": 3}, torch.zeros(3)])
def test_checkpoints_of_other_models_are_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="holds no ConvMAE weights") as error:
        import_original(write_pth(tmp_path / "a.pth", content), tmp_path / "out")
    assert_one_sentence(error)


def test_a_file_that_contains_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, object] = {}
    content["model"] = content
    with pytest.raises(ConvMAEError, match="holds no ConvMAE weights"):
        import_original(write_pth(tmp_path / "a.pth", content), tmp_path / "out")


def test_entries_that_are_no_tensors_are_reported(tmp_path: Path) -> None:
    source = write_pth(tmp_path / "a.pth", encoder_state() | {"version": "1.0"})
    report = import_original(source, tmp_path / "out", num_heads=4)
    assert report.dropped == {"version": "not a tensor"}


def test_names_in_a_file_cannot_forge_lines_of_the_report(tmp_path: Path) -> None:
    content = {"model": encoder_state() | {"x\nwrote elsewhere": torch.zeros(1)}, "\x1b[31m": 1}
    report = import_original(write_pth(tmp_path / "a.pth", content), tmp_path / "out", num_heads=4)
    assert all(line.isprintable() for line in report.lines())
    assert report.file.left_behind == (r"\x1b[31m",)


def test_an_existing_output_folder_is_not_overwritten(tmp_path: Path) -> None:
    source = write_pth(tmp_path / "a.pth", encoder_state())
    (tmp_path / "out").mkdir()
    with pytest.raises(ConvMAEError, match="exists already"):
        import_original(source, tmp_path / "out", num_heads=4)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_imported_classifier_is_ready_for_use(tmp_path: Path) -> None:
    import_original(write_pth(tmp_path / "a.pth", classifier_state()), tmp_path / "out", num_heads=4)
    model, record = load_classifier(tmp_path / "out", image_size=(64, 64))
    assert isinstance(model, ConvMAEClassifier) and not model.training
    assert record.model.image_size == (64, 64)
