"""Which engine of a bundle is run, and what is said where there is none."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from convmae_deploy.backends.engine_record import engine_name, find_engine, read_record, record_path
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
