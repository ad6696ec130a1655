"""Checkpoints that somebody else made: each ends with one sentence, in little time and memory, and runs nothing."""

import argparse
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from convmae_deploy.checkpoints import CheckpointRecord, import_original, load_classifier, save_checkpoint
from convmae_deploy.checkpoints.native import write_checkpoint_files
from convmae_deploy.models import ConvMAEConfig
from convmae_deploy.models.classifier import build_classifier
from tests.hostile.bounds import MEGABYTE, Ending, bounded
from tests.original_files import encoder_state, pretraining_state, write_pth

pytestmark = pytest.mark.slow  # together

CONFIG = ConvMAEConfig(embed_dims=(8, 16, 32), depths=(1, 1, 2), mlp_ratios=(2, 2, 2), num_heads=4, image_size=(64, 96))
Fields = dict[str, Any]


def import_file(source: str, out: str) -> None:
    import_original(Path(source), Path(out), num_heads=4)


def load(folder: str) -> None:
    load_classifier(Path(folder))


def refused(ending: Ending) -> str:
    assert ending.how == "refused", ending
    assert ending.grown < 250 * MEGABYTE and not ending.started and not ending.connected
    assert "\n" not in ending.sentence and len(ending.sentence) < 700
    return ending.sentence


def archive(path: Path, description: bytes, packing: int = zipfile.ZIP_STORED) -> None:
    """A .pth file of a pickle and nothing else."""
    with zipfile.ZipFile(path, "w", packing) as file:
        file.writestr("archive/data.pkl", description)
        file.writestr("archive/version", b"3\n")


def repacked(path: Path, content: object) -> None:
    """A .pth file whose entries are compressed, which PyTorch never writes and reads all the same."""
    stored = io.BytesIO()
    torch.save(content, stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))


def packed_zeros(path: Path) -> None:
    repacked(path, encoder_state() | {"zeros": torch.zeros(10**8)})


def packed_pickle(path: Path) -> None:
    archive(path, b"\x80\x02" + b"]" * 10**7 + b".", zipfile.ZIP_DEFLATED)


def endless_description(path: Path) -> None:
    archive(path, b"\x80\x02" + b"]" * (4 * 10**6) + b".")


def tuple_in_tuple(path: Path) -> None:
    """A key that Python cannot compare without running out of stack, which ends the process."""
    archive(path, b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.")


def tuple_of_tuples(path: Path) -> None:
    """A key of 2^60 parts in some hundred bytes: (x, x) of (x, x) of ..."""
    twice = b"".join(b"h%ch%c\x86q%c" % (place, place, place + 1) for place in range(60))
    archive(path, b"\x80\x02)q\x00" + twice + b"}h\x3cK\x01s.")


def with_entry(value: Tensor, name: str = "blocks3.0.attn.qkv.weight") -> Callable[[Path], None]:
    return lambda path: torch.save({"model": encoder_state() | {name: value}}, path)


def all_of_one_value(path: Path) -> None:
    """A model of terabytes whose shapes fit together, in a file of kilobytes."""
    sides = {32: 32_000, 48: 48_000, 96: 96_000, 64: 64_000, 192: 192_000, 288: 288_000}
    state = {
        name: torch.zeros(1).expand(*(sides.get(side, side) for side in value.shape))
        for name, value in encoder_state().items()
    }
    torch.save(state, path)


def one_storage_again_and_again(path: Path) -> None:
    value = torch.zeros(10**6)
    torch.save(encoder_state() | {f"more{index}": value for index in range(2000)}, path)


def two_descriptions(path: Path) -> None:
    archive(path, pickle.dumps({}))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("other/data.pkl", pickle.dumps({}))


def more_values_than_bytes(path: Path) -> None:
    """The description says a million values of a storage of seven."""
    stored = io.BytesIO()
    torch.save({"a": torch.arange(7.0)}, stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            content = source.read(entry).replace(b"K\x07tq", b"J\x40\x42\x0f\x00tq")
            target.writestr(entry.filename, content.replace(b"K\x07\x85", b"J\x40\x42\x0f\x00\x85"))


def terabytes_of_nothing(path: Path) -> None:
    path.touch()
    os.truncate(path, 10**13)


def call(name: str, arguments: bytes) -> Callable[[Path], None]:
    """A file that calls something with what the arguments of a pickle make."""
    return lambda path: archive(path, b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n" + arguments + b"\x85R.")


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "packed_zeros": (packed_zeros, "what it holds is packed"),
    "packed_pickle": (packed_pickle, "what it holds is packed"),
    "endless_description": (endless_description, "its description is without end"),
    "tuple_in_tuple": (tuple_in_tuple, "its description is nested without end"),
    "tuple_of_tuples": (tuple_of_tuples, "its description is nested without end"),
    "expanded": (with_entry(torch.zeros(1).expand(10**6, 10**6)), "claims more values than it has bytes for"),
    "expanded_and_unknown": (with_entry(torch.zeros(1).expand(10**12), "unknown"), "claims more values than it has"),
    "strided": (with_entry(torch.zeros(1).as_strided((10**6, 10**6), (0, 0))), "claims more values than it has bytes"),
    "all_of_one_value": (all_of_one_value, "claims more values than it has bytes for"),
    "one_storage_again_and_again": (one_storage_again_and_again, "claims more values than it has bytes for"),
    "on_no_device": (
        with_entry(torch.zeros(10**6, 10**6, device="meta")),
        "would have to run torch._utils._rebuild_meta_tensor",
    ),
    "complex": (with_entry(torch.zeros(2, dtype=torch.complex64)), "found blocks3.0.attn.qkv.weight, torch.complex64"),
    "two_descriptions": (two_descriptions, "it has 2 files data.pkl"),
    "more_values_than_bytes": (more_values_than_bytes, "is not a readable PyTorch checkpoint"),
    "bytes_from_a_number": (call("builtins bytearray", b"J\xff\xff\xff\x7f"), "would have to run builtins.bytearray"),
    "set_of_many": (call("builtins set", b"](K\x01K\x02e"), "would have to run builtins.set"),
    "counter": (call("collections Counter", b"]"), "would have to run collections.Counter"),
    "dictionary_of_pairs": (call("collections OrderedDict", b"]"), "it makes a container of something else"),
    "size": (call("torch Size", b"]"), "would have to run torch.Size"),
    "pipe": (os.mkfifo, "found no plain file"),
    "link_to_a_device": (lambda path: path.symlink_to("/dev/zero"), "found no plain file"),
    "terabytes_of_nothing": (terabytes_of_nothing, "not a readable PyTorch"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_of_the_authors_kind_is_refused(tmp_path: Path, name: str) -> None:
    make, reason = FILES[name]
    make(tmp_path / "a.pth")
    ending = bounded(import_file, str(tmp_path / "a.pth"), str(tmp_path / "out"), memory=800 * MEGABYTE)
    assert reason in refused(ending) and "a.pth" in ending.sentence
    assert not (tmp_path / "out").exists()


def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    places = torch.zeros(2, 1, dtype=torch.long)
    value = torch.sparse_coo_tensor(places, torch.ones(1), (10**6, 10**6), check_invariants=True)
    with_entry(value, "unknown")(tmp_path / "a.pth")
    ending = bounded(import_file, str(tmp_path / "a.pth"), str(tmp_path / "out"), memory=800 * MEGABYTE)
    assert "would have to run torch._utils._rebuild_sparse_tensor" in refused(ending)


def test_paths_in_the_arguments_of_a_training_are_text(tmp_path: Path) -> None:
    """The authors' documented way to start a training on a cluster writes them."""
    arguments = argparse.Namespace(job_dir=Path("/checkpoint/of/nobody"), mask_ratio=0.6, norm_pix_loss=False)
    source = write_pth(tmp_path / "a.pth", {"model": pretraining_state(), "args": arguments})
    ending = bounded(import_file, str(source), str(tmp_path / "out"), memory=800 * MEGABYTE)
    assert ending.how == "returned" and not ending.opened_outside(tmp_path)
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["pretraining"]["mask_ratio"] == 0.6


@pytest.mark.parametrize("name", ["pathlib._local\nPosixPath", "pathlib\nWindowsPath", "pathlib._local\nWindowsPath"])
def test_paths_of_other_pythons_and_systems_are_text_too(tmp_path: Path, name: str) -> None:
    stored = io.BytesIO()
    torch.save({"model": encoder_state(), "args": argparse.Namespace(job_dir=Path("/a/b"))}, stored)
    kind = type(Path())
    own = f"{kind.__module__}\n{kind.__name__}".encode()
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(tmp_path / "a.pth", "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry).replace(own, name.encode()))
    import_original(tmp_path / "a.pth", tmp_path / "out", num_heads=4)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    record = CheckpointRecord(kind="classification", variant="custom", model=CONFIG, classes=("a", "b", "c"))
    save_checkpoint(tmp_path / "checkpoint", build_classifier(CONFIG, num_classes=3).state_dict(), record)
    return tmp_path / "checkpoint"


def change(folder: Path, **fields: Any) -> None:
    """Other values of the model's part of the config."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["model"].update(fields)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"embed_dims": [8, 16, 10**9]}, "model.embed_dims is beyond that of any model"),
        ({"depths": [1, 1, 10**6]}, "model.depths is beyond that of any model"),
        ({"depths": [1, 1, 200]}, "tensors differ, first encoder.blocks3.10."),
        ({"embed_dims": [8, 16, 65_536]}, "tensors differ"),
        ({"image_size": [4096, 4096]}, "tensors differ, first encoder.pos_embed: expected (1, 65536, 32)"),
        ({"image_size": [65_536, 65_536]}, "multiples of 32, at most 4096; got 65536 x 65536"),
        ({"image_size": [10**9, 32]}, "model.image_size is beyond that of any model"),
        ({"kernel_size": 10**9 + 1}, "model.kernel_size is beyond that of any model"),
        ({"kernel_size": 9999}, "tensors differ"),
        ({"num_heads": 0}, "num_heads must be above 0; got 0"),
        ({"num_heads": -(10**400)}, "model.num_heads is beyond that of any model"),
        ({"mlp_ratios": [2, 2, 1e300]}, "model.mlp_ratios is beyond that of any model"),
        ({"depths": [1, 1, -5]}, "depths must be above 0; got 1, 1, -5"),
        ({"dense": {"window_size": 10**12}}, "model.dense.window_size is beyond that of any model"),
    ],
)
def test_a_config_of_absurd_numbers_takes_no_memory(checkpoint: Path, fields: Fields, reason: str) -> None:
    change(checkpoint, **fields)
    assert reason in refused(bounded(load, str(checkpoint), memory=800 * MEGABYTE))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_of_a_config_are_finite(checkpoint: Path, number: str) -> None:
    config = checkpoint / "config.json"
    text = config.read_text(encoding="utf-8")
    ratios = json.dumps(json.loads(text)["model"]["mlp_ratios"])
    compact = json.dumps(json.loads(text))
    config.write_text(compact.replace(ratios, f"[{number}, 2, 2]"), encoding="utf-8")
    assert "config.json is not" in refused(bounded(load, str(checkpoint), memory=800 * MEGABYTE))


def nested(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace('"dense": {', '"dense": {"x": ' + "[" * 600 + "]" * 600 + ", ", 1)
    path.write_text(text, encoding="utf-8")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def sparse_terabytes(path: Path) -> None:
    os.truncate(path, 10**13)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def header_of_gigabytes(path: Path) -> None:
    path.write_bytes((10**11).to_bytes(8, "little") + b"{}" + bytes(100))


def header_that_lies(path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**10], "data_offsets": [0, 4 * 10**10]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(100))


DAMAGES: list[tuple[str, Callable[[Path], None]]] = [
    ("config.json", nested),
    ("config.json", cut_off),
    ("config.json", sparse_terabytes),
    ("model.safetensors", cut_off),
    ("model.safetensors", pipe),
    ("model.safetensors", header_of_gigabytes),
    ("model.safetensors", header_that_lies),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=lambda value: getattr(value, "__name__", value))
def test_a_hostile_checkpoint_is_one_sentence(checkpoint: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(checkpoint / name)
    assert name in refused(bounded(load, str(checkpoint), memory=800 * MEGABYTE))


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("-inf"), "infinity")])
def test_weights_that_are_no_numbers_are_said_with_their_name(checkpoint: Path, value: float, word: str) -> None:
    state = build_classifier(CONFIG, num_classes=3).state_dict()
    state["head.weight"][1, 2] = value
    record = CheckpointRecord(kind="classification", variant="custom", model=CONFIG, classes=("a", "b", "c"))
    write_checkpoint_files(checkpoint, state, record)
    sentence = refused(bounded(load, str(checkpoint), memory=800 * MEGABYTE))
    assert sentence.startswith(f"the checkpoint holds {word} in head.weight of ")
