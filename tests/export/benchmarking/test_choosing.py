"""Which of those that were measured is written down, from figures worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import load_bundle
from export.benchmarking.choosing import choose
from export.benchmarking.report import BenchmarkRecord, CombinationRecord, Row
from export.runtimes.combinations import Combination
from tests.bundle_factory import make_bundle, write_manifest
from tests.export.benchmarking.test_report import BF16, INT8, ONNX, described, record_of, row

EAGER = Combination(runtime="eager", precision="bf16")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """With an int8 file, of which the report says that it passed."""
    path = make_bundle(tmp_path / "mine")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "model.int8.onnx").write_bytes((path / "model.onnx").read_bytes())
    manifest["files"]["model.int8.onnx"] = manifest["files"]["model.onnx"] | {"precision": "int8"}
    write_manifest(path, manifest)
    return load_bundle(path)


def record(rows: tuple[Row, ...], *combinations: CombinationRecord, **changes: Any) -> BenchmarkRecord:
    return record_of(rows, combinations=combinations, **changes)


def test_the_fastest_that_holds_is_chosen_and_who_was_faster_is_named(bundle: Bundle) -> None:
    rows = (row(ONNX, 1, 9.0), row(BF16, 1, 2.0), row(INT8, 1, 4.0), row(EAGER, 1, 1.0))
    found = record(rows, described(ONNX), described(BF16), described(INT8), described(EAGER))
    choice, passed_over = choose(found, bundle, "latency")
    assert (choice.runtime, choice.file, choice.precision) == ("onnxruntime", "model.int8.onnx", None)
    assert choice.file_sha256 == bundle.manifest.files["model.int8.onnx"].sha256
    assert passed_over[EAGER.name] == "PyTorch serves no bundle"
    assert passed_over[BF16.name] == "the file is fp32, and computed in bf16; give --data"


def test_answers_to_data_let_bf16_in_or_keep_it_out(bundle: Bundle) -> None:
    rows = (row(ONNX, 1, 9.0), row(BF16, 1, 2.0))
    for agreement, file in ((0.995, "bf16"), (0.98, None)):
        found = record(rows, described(ONNX, agreement=1.0), described(BF16, agreement=agreement))
        choice, passed_over = choose(found, bundle, "latency")
        assert choice.precision == file
        assert list(passed_over) == ([] if file else [BF16.name])
        assert (choice.runtime, choice.hint) == (("openvino", "latency") if file else ("onnxruntime", None))


def test_within_the_noise_the_first_is_chosen_and_throughput_may_choose_otherwise(bundle: Bundle) -> None:
    rows = (row(ONNX, 1, 4.0, 3.0), row(INT8, 1, 3.5), row(ONNX, 8, 40.0), row(INT8, 8, 16.0))
    found = record(rows, described(ONNX), described(INT8))
    assert choose(found, bundle, "latency")[0].file == "model.onnx"
    assert choose(found, bundle, "throughput")[0].file == "model.int8.onnx"


def test_where_nothing_holds_nothing_is_chosen(bundle: Bundle) -> None:
    found = record((row(BF16, 1, 2.0),), described(BF16))
    with pytest.raises(ConvMAEError, match="nothing that was measured holds.*give --data"):
        choose(found, bundle, "latency")
