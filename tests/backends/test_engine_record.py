"""Which engine of a bundle is run, and what is said where there is none."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from convmae_deploy.backends import engine_record
from convmae_deploy.backends.engine_record import (
    check_machine,
    engine_name,
    engines_of,
    find_engine,
    read_record,
    record_path,
    set_name,
)
from convmae_deploy.backends.gpu import Gpu
from convmae_deploy.bundle.loading import Bundle, BundleError
from convmae_deploy.description import describe
from convmae_deploy.tasks import load_bundle
from tests.backends.test_tensorrt_backend import put_engine
from tests.bundle_factory import make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return load_bundle(make_bundle(tmp_path / "bundle"))


def test_an_engine_is_found_by_its_name_and_by_that_of_its_graph(bundle: Bundle) -> None:
    put_engine(bundle, "model.engine")
    put_engine(bundle, "fast.engine")
    for file in (None, "model.onnx", "model.engine"):
        assert find_engine(bundle, file) == bundle.path / "model.engine"
    assert find_engine(bundle, "fast.engine") == bundle.path / "fast.engine"


def test_the_only_engine_is_the_default(bundle: Bundle) -> None:
    put_engine(bundle, "model.fp16.engine")
    assert find_engine(bundle, None) == bundle.path / "model.fp16.engine"
    with pytest.raises(BundleError, match="model.engine, found model.fp16.engine; build it"):
        find_engine(bundle, "model.onnx")


def test_of_several_engines_none_is_taken_for_a_graph_that_has_none(bundle: Bundle) -> None:
    put_engine(bundle, "a.engine")
    put_engine(bundle, "b.engine")
    with pytest.raises(BundleError, match="model.engine, found a.engine, b.engine"):
        find_engine(bundle, None)


def test_a_missing_engine_is_a_sentence_that_says_what_to_build(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="found none; build it on this machine in fp32"):
        find_engine(bundle, None)
    with pytest.raises(BundleError, match="has no engine other.engine"):
        find_engine(bundle, "other.engine")
    with pytest.raises(BundleError, match="has no graph 'model.fp16.onnx'"):
        find_engine(bundle, "model.fp16.onnx")


def test_an_engine_without_a_record_that_can_be_read_is_refused(bundle: Bundle) -> None:
    engine = put_engine(bundle)
    assert read_record(engine).batch_sizes == (1, 4)
    record_path(engine).write_text('{"flavour": "tensorrt"}', encoding="utf-8")
    with pytest.raises(BundleError, match="no record of an engine"):
        read_record(engine)
    record_path(engine).unlink()
    with pytest.raises(BundleError, match="has no record model.engine.json beside it"):
        read_record(engine)


def test_an_engine_in_the_folder_leaves_the_bundle_in_order(bundle: Bundle) -> None:
    put_engine(bundle)
    assert load_bundle(bundle.path).manifest == bundle.manifest


def test_an_engine_is_called_as_its_graph() -> None:
    assert engine_name("model.onnx") == "model.engine"
    assert engine_name("model.fp16.onnx") == "model.fp16.engine"


def test_convmae_info_lists_the_engines_of_a_bundle(bundle: Bundle) -> None:
    put_engine(bundle, "model.engine")
    record_path(put_engine(bundle, "old.engine")).unlink()
    text = io.StringIO()
    describe(bundle, Console(width=300, file=text))
    assert "TensorRT 10.9.0.34" in text.getvalue() and "1, 4" in text.getvalue()
    assert "old.engine.json beside it" in text.getvalue()


def put_in_sets(bundle: Bundle) -> None:
    """An engine of each of two machines, both by the same name."""
    put_engine(bundle, "model.engine")
    record = read_record(bundle.path / "model.engine")
    for capability, version in (("8.9", "10.9.0"), ("9.0", "10.9.0")):
        folder = bundle.path / "engines" / set_name((capability,), False, version)
        folder.mkdir(parents=True)
        changes = {"flavour": "tensorrt", "compute_capabilities": (capability,), "tensorrt_version": version}
        (folder / "model.engine").write_bytes((bundle.path / "model.engine").read_bytes())
        own = record.model_copy(update=changes)
        record_path(folder / "model.engine").write_text(own.model_dump_json(), encoding="utf-8")
    (bundle.path / "model.engine").unlink()


def test_of_several_sets_the_engine_of_this_machine_is_taken(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_sets(bundle)
    names = ["engines/sm8.9-10.9.0/model.engine", "engines/sm9.0-10.9.0/model.engine"]
    assert engines_of(bundle) == names
    assert find_engine(bundle, names[1]) == bundle.path / names[1]  # as it is asked for by name
    version = SimpleNamespace(__version__="10.9.0")
    monkeypatch.setattr(engine_record, "is_installed", lambda flavour: True)
    monkeypatch.setattr(engine_record, "import_tensorrt", lambda flavour: version)
    monkeypatch.setattr(engine_record, "find_gpu", lambda: None)
    with pytest.raises(BundleError, match="several engines, and no GPU to choose by; name one of .*sm8.9-10.9.0"):
        find_engine(bundle, "model.onnx")
    for capability, name in (("8.9", names[0]), ("9.0", names[1])):
        gpu = Gpu(name="NVIDIA", compute_capability=capability, cuda="13.0")
        monkeypatch.setattr(engine_record, "find_gpu", lambda gpu=gpu: gpu)
        for file in (None, "model.onnx", "model.engine"):
            assert find_engine(bundle, file) == bundle.path / name
    version.__version__ = "11.0.0"
    with pytest.raises(BundleError, match="none of 2 engines is for this machine .* needs that version, found 11.0.0"):
        find_engine(bundle, None)


def test_an_engine_outside_of_the_folder_is_no_engine_of_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    put_in_sets(bundle)
    (bundle.path / "engines" / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "other.engine").write_bytes(b"x")
    with pytest.raises(BundleError, match="is a link out of its folder"):
        find_engine(bundle, "engines/elsewhere/other.engine")
    with pytest.raises(BundleError, match="has no engine ../other.engine"):
        find_engine(bundle, "../other.engine")


@pytest.mark.parametrize(
    ("found", "fits"), [("8.6", True), ("9.0", False), ("12.0", True), ("12.5", True), ("7.5", False)]
)
def test_gpus_that_tensorrt_for_rtx_does_not_know_are_not_newer_ones(bundle: Bundle, found: str, fits: bool) -> None:
    """It has no 9.0 (H100, H200), which is beyond the first of its kinds and none of them."""
    put_engine(bundle, "model.engine")
    changes = {"compute_capabilities": ("8.0", "8.6", "8.9", "12.0"), "newer_gpus": True}
    record = read_record(bundle.path / "model.engine").model_copy(update=changes)
    gpu = Gpu(name="NVIDIA", compute_capability=found, cuda="13.0")
    if fits:
        check_machine(bundle.path, record, record.tensorrt_version, gpu)
        return
    with pytest.raises(BundleError, match=f"compute capability 8.0 or 8.6 or 8.9 or 12.0 or more, found .* {found}"):
        check_machine(bundle.path, record, record.tensorrt_version, gpu)
