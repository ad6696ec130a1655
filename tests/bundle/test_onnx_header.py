from pathlib import Path

import onnx
import pytest

from convmae_deploy.bundle.onnx_header import read_opset
from tests.bundle_factory import make_graph


@pytest.mark.parametrize("version", [9, 20, 300])
def test_the_opset_is_the_one_that_onnx_writes(tmp_path: Path, version: int) -> None:
    model = make_graph(3, (32, 32))
    model.opset_import.insert(0, onnx.helper.make_opsetid("com.microsoft", 1))
    model.opset_import[1].version = version
    onnx.save(model, tmp_path / "model.onnx")
    assert read_opset(tmp_path / "model.onnx") == version


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 40, b"\x42\xff\xff\xff\x7f", b"\x42\x80"])
def test_other_files_have_no_opset(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert read_opset(tmp_path / "file") is None
