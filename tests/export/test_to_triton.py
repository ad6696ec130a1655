import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc import model_config_pb2

from convmae_deploy.bundle.manifest import Manifest
from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.program import run_program
from convmae_deploy.tasks import load_bundle
from convmae_deploy.tasks.classification import Classifier
from convmae_deploy.tasks.preprocess import preprocess
from export import to_triton as program
from export.verification.samples import made_photos
from tests.backends.test_tensorrt_backend import put_engine
from tests.bundle_factory import (
    make_bundle,
    make_detection_bundle,
    make_segmentation_bundle,
    make_video_bundle,
    open_as,
    write_manifest,
)

MakeBundle = Callable[[Path], Path]
TASKS: list[MakeBundle] = [make_bundle, make_detection_bundle, make_segmentation_bundle, make_video_bundle]
TYPES = {"float32": model_config_pb2.TYPE_FP32, "int64": model_config_pb2.TYPE_INT64}


def to_triton(bundle: Path, out: Path, *more: str) -> int:
    """Runs the program and returns its exit status."""
    with pytest.raises(SystemExit) as exit_info:
        run_program(lambda: program.main([str(bundle), "--out", str(out), *more]))
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def read_config(model: Path) -> Any:
    """The ModelConfig message of a model's folder, strictly parsed."""
    text = (model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def edit_manifest(bundle: Path, **fields: Any) -> None:
    content = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    write_manifest(bundle, content | fields)


@pytest.fixture(params=TASKS, ids=["classification", "detection", "segmentation", "video"])
def any_bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make: MakeBundle = request.param
    return make(tmp_path / "bundle")


@pytest.mark.parametrize("device", ["auto", "cpu", "gpu"])
def test_a_bf16_graph_is_refused_on_every_device_and_told_of_engines(
    tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    files = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["files"]
    files["model.onnx"]["precision"] = "bf16"
    edit_manifest(bundle, files=files)
    assert to_triton(bundle, tmp_path / "repository", "--device", device) == 2
    error = capsys.readouterr().err
    assert "no convolutions on any device" in error and "export.to_tensorrt" in error and error.count("\n") == 1
    assert not (tmp_path / "repository").exists()


def test_the_configuration_is_a_model_config_that_says_what_the_manifest_says(any_bundle: Path, tmp_path: Path) -> None:
    assert to_triton(any_bundle, tmp_path / "repository") == 0
    manifest = load_bundle(any_bundle).manifest
    config = read_config(tmp_path / "repository" / manifest.name)
    assert (config.name, config.backend, config.platform) == (manifest.name, "onnxruntime", "onnxruntime_onnx")
    assert config.max_batch_size == manifest.input.max_batch
    (image,) = config.input
    assert (image.name, image.data_type, tuple(image.dims)) == (
        manifest.input.name, model_config_pb2.TYPE_FP32, manifest.input.shape,
    )  # fmt: skip
    assert [output.name for output in config.output] == list(manifest.outputs)
    for output in config.output:
        spec = manifest.outputs[output.name]
        assert (output.data_type, tuple(output.dims)) == (TYPES[spec.dtype], spec.shape or (1,))
        assert output.HasField("reshape") == (spec.shape == ()) and not output.reshape.shape
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, model_config_pb2.ModelInstanceGroup.KIND_AUTO)
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters["task"] == manifest.task
    assert json.loads(parameters["preprocessing"]) == manifest.preprocessing.model_dump(mode="json")


def test_triton_finds_what_the_graph_itself_declares(any_bundle: Path, tmp_path: Path) -> None:
    assert to_triton(any_bundle, tmp_path / "repository", "--name", "served") == 0
    model = tmp_path / "repository" / "served"
    config = read_config(model)
    session = onnxruntime.InferenceSession(str(model / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    declared = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    for tensor in (*config.input, *config.output):
        batch, *rest = declared[tensor.name]
        assert isinstance(batch, str)
        assert rest == list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)


def test_labels_are_ranked_by_triton_only_where_an_output_is_a_row_of_class_scores(
    any_bundle: Path, tmp_path: Path
) -> None:
    assert to_triton(any_bundle, tmp_path / "repository", "--name", "served") == 0
    model = tmp_path / "repository" / "served"
    manifest = load_bundle(any_bundle).manifest
    assert (model / "labels.txt").read_text(encoding="utf-8").splitlines() == list(manifest.classes)
    labelled = [output.name for output in read_config(model).output if output.label_filename]
    assert labelled == (["logits"] if "classification" in manifest.task else [])


def test_the_readme_gives_the_numbers_a_client_needs(any_bundle: Path, tmp_path: Path) -> None:
    assert to_triton(any_bundle, tmp_path / "repository", "--name", "served") == 0
    manifest = load_bundle(any_bundle).manifest
    text = (tmp_path / "repository" / "served" / "README.md").read_text(encoding="utf-8")
    for number in ("0.485, 0.456, 0.406", "0.229, 0.224, 0.225", manifest.preprocessing.interpolation):
        assert number in text
    height, width = manifest.preprocessing.input_size
    assert f"{height} x {width} (height x width)" in text
    assert f"`{manifest.input.name}`, FP32, shape (B, {', '.join(map(str, manifest.input.shape))})" in text
    assert f"{type(manifest.preprocessing).__name__}.model_validate_json" in text
    for name in manifest.outputs:
        assert f"| `{name}` |" in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_client_that_follows_the_configuration_gets_the_predictors_numbers(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    assert to_triton(bundle, tmp_path / "repository") == 0
    model = tmp_path / "repository" / "tiny"
    spec = Preprocessing.model_validate_json(read_config(model).parameters["preprocessing"].string_value)
    photo: Image.Image = made_photos(1)[0]
    session = onnxruntime.InferenceSession(str(model / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": preprocess(photo, spec)[None]})
    predictor = open_as(Classifier, bundle, device="cpu")
    np.testing.assert_array_equal(logits, predictor.run(predictor.preprocess(photo)[None], ("logits",))["logits"])


def test_triton_warms_up_with_every_batch_that_it_is_to_make(any_bundle: Path, tmp_path: Path) -> None:
    assert to_triton(any_bundle, tmp_path / "repository", "--name", "served", "--preferred-batches", "2") == 0
    manifest = load_bundle(any_bundle).manifest
    config = read_config(tmp_path / "repository" / "served")
    assert [request.batch_size for request in config.model_warmup] == [1, 2]
    for request in config.model_warmup:
        ((name, tensor),) = request.inputs.items()
        assert (name, tuple(tensor.dims), tensor.zero_data) == (manifest.input.name, manifest.input.shape, True)
        assert tensor.data_type == model_config_pb2.TYPE_FP32


def test_instances_device_batching_and_threads_are_as_asked(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    flags = "--instances 3 --device cpu --threads 2 --max-queue-ms 0.5 --preferred-batches 8 4".split()
    assert to_triton(bundle, tmp_path / "repository", *flags) == 0
    config = read_config(tmp_path / "repository" / "tiny")
    (group,) = config.instance_group
    assert (group.count, group.kind) == (3, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert config.parameters["intra_op_thread_count"].string_value == "2"


def test_a_model_of_single_images_is_not_batched(tmp_path: Path) -> None:
    assert to_triton(make_bundle(tmp_path / "bundle", max_batch=1), tmp_path / "repository") == 0
    config = read_config(tmp_path / "repository" / "tiny")
    assert config.max_batch_size == 1
    assert config.WhichOneof("scheduling_choice") is None


def test_names_that_protobuf_must_escape_arrive_whole(tmp_path: Path) -> None:
    terms = 'a "quoted" \\ licence, 中文\nand more'
    bundle = make_bundle(tmp_path / "bundle", classes=("tench\nfish", "Käfer", 'a "b"'))
    edit_manifest(bundle, licence={"name": terms})
    assert to_triton(bundle, tmp_path / "repository") == 0
    model = tmp_path / "repository" / "tiny"
    assert read_config(model).parameters["licence"].string_value == terms
    assert (model / "labels.txt").read_text(encoding="utf-8") == 'tench fish\nKäfer\na "b"\n'


def test_a_second_model_joins_the_repository_and_one_that_is_there_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    assert to_triton(make_bundle(tmp_path / "one"), repository) == 0
    assert to_triton(make_detection_bundle(tmp_path / "two"), repository) == 0
    assert sorted(path.name for path in repository.iterdir()) == ["boxes", "tiny"]
    before = (repository / "tiny" / "config.pbtxt").read_bytes()
    assert to_triton(tmp_path / "one", repository, "--instances", "2") == 2
    assert "exists already" in capsys.readouterr().err
    assert (repository / "tiny" / "config.pbtxt").read_bytes() == before


def test_the_graph_is_the_bundles_own_file_or_a_copy_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    assert to_triton(bundle, tmp_path / "linked") == 0
    linked = tmp_path / "linked" / "tiny" / "1" / "model.onnx"
    assert linked.samefile(bundle / "model.onnx")

    def refuse(*_: object) -> None:
        raise OSError("other device")

    monkeypatch.setattr("os.link", refuse)
    assert to_triton(bundle, tmp_path / "copied") == 0
    copied = tmp_path / "copied" / "tiny" / "1" / "model.onnx"
    assert not copied.samefile(bundle / "model.onnx")
    assert copied.read_bytes() == (bundle / "model.onnx").read_bytes()
    assert (tmp_path / "copied" / "tiny" / "LICENSE-WEIGHTS").is_file()


def test_nothing_is_left_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "bundle")

    def fail(*_: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(program, "readme", fail)
    with pytest.raises(OSError, match="disk full"):
        program.write_model(program.TritonConfig(bundle=bundle, out=tmp_path / "repository"))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_unverified_bundle_is_written_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert to_triton(make_bundle(tmp_path / "bundle", verified=False), tmp_path / "repository") == 0
    assert "never verified" in caplog.text
    assert "never verified" in (tmp_path / "repository" / "tiny" / "README.md").read_text(encoding="utf-8")


def with_fixed_batch(bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    rewrite_graph(bundle, model.SerializeToString())


def rewrite_graph(bundle: Path, content: bytes) -> None:
    """Another graph, under a hash that fits."""
    (bundle / "model.onnx").write_bytes(content)
    manifest = Manifest.model_validate_json((bundle / "manifest.json").read_text(encoding="utf-8"))
    file = manifest.files["model.onnx"].model_dump(mode="json")
    file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(bundle, files={"model.onnx": file})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--instances", "0"), "--instances must be at least 1; got 0"),
        (("--threads", "0"), "--threads must be at least 1; got 0"),
        (("--max-queue-ms", "-1"), "--max-queue-ms must be between 0 and 60000; got -1"),
        (("--preferred-batches", "4", "9"), "between 1 and the model's largest, 8; got 9"),
        (("--name", "a/b"), "--name must be 1 to 64 letters"),
        (("--file", "other.onnx"), "has no graph 'other.onnx'"),
    ],
)
def test_a_bad_argument_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    assert to_triton(make_bundle(tmp_path / "bundle"), tmp_path / "repository", *arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda bundle: (bundle / "model.onnx").write_bytes(b"short"), "must have"),
        (lambda bundle: rewrite_graph(bundle, b"no graph"), "is no ONNX model"),
        (with_fixed_batch, "must take batches from 1 upwards"),
        (lambda bundle: (bundle / "manifest.json").unlink(), "holds no manifest.json"),
    ],
    ids=["damaged", "no-graph", "fixed-batch", "no-bundle"],
)
def test_a_bundle_that_triton_could_not_serve_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], sentence: str
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    damage(bundle)
    assert to_triton(bundle, tmp_path / "repository") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def read_readme(model: Path) -> str:
    return (model / "README.md").read_text(encoding="utf-8")


def test_an_engine_is_served_with_all_of_its_profiles(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    engine = put_engine(load_bundle(bundle))
    assert to_triton(bundle, tmp_path / "repository", "--file", "model.engine") == 0
    model = tmp_path / "repository" / "tiny"
    config = read_config(model)
    assert (config.backend, config.platform, config.max_batch_size) == ("tensorrt", "tensorrt_plan", 4)
    (group,) = config.instance_group
    assert (group.kind, list(group.profile)) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, ["0", "1"])
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert [path.name for path in (model / "1").iterdir()] == ["model.plan"]
    assert (model / "1" / "model.plan").read_bytes() == engine.read_bytes()
    text = read_readme(model)
    assert "compute capability 8.9 and a Triton with TensorRT of version 10.9.0.34" in text and "B from 1 to 4" in text
    assert to_triton(bundle, tmp_path / "other", "--file", "model.engine", "--preferred-batches", "2") == 0
    assert list(read_config(tmp_path / "other" / "tiny").dynamic_batching.preferred_batch_size) == [2]


def test_a_version_compatible_engine_says_how_triton_is_to_be_started(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    put_engine(load_bundle(bundle), version_compatible=True)
    assert to_triton(bundle, tmp_path / "repository", "--file", "model.engine") == 0
    assert "--backend-config=tensorrt,version-compatible=true" in read_readme(tmp_path / "repository" / "tiny")


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({"flavour": "tensorrt-rtx"}, (), "Triton runs those of TensorRT alone"),
        ({"profiles": ({"min_batch": 2, "max_batch": 4},)}, (), "found 2 as the smallest"),
        ({"engine_sha256": "0" * 64}, (), "it was changed"),
        ({}, ("--device", "cpu"), "which runs on a GPU; use --device gpu or auto"),
        ({}, ("--threads", "2"), "--threads is for graphs"),
        ({}, ("--preferred-batches", "5"), "between 1 and the model's largest, 4; got 5"),
    ],
)
def test_an_engine_that_triton_could_not_serve_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    put_engine(load_bundle(bundle), **changes)
    assert to_triton(bundle, tmp_path / "repository", "--file", "model.engine", *arguments) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()
