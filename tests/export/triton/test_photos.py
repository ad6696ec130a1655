"""The ensemble that takes files, its Python step run with a stand-in for Triton's module: no Triton has run it here."""

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

from convmae_deploy.tasks import open_predictor
from export.kit_photos import kit_photos
from tests.bundle_factory import make_bundle, make_detection_bundle, make_segmentation_bundle, make_video_bundle
from tests.export.test_to_triton import MakeBundle, read_config, to_triton

ModelConfig = model_config_pb2.ModelConfig


@dataclass
class Tensor:
    """As Triton's."""

    name: str
    values: NDArray[Any]

    def as_numpy(self) -> NDArray[Any]:
        return self.values


class TritonError(Exception):
    """As Triton's."""

    INVALID_ARG = 3

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class InferenceResponse:
    """As Triton's."""

    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None


def stand_in() -> ModuleType:
    """The functions of triton_python_backend_utils that a model uses; a request is a list of tensors."""
    module = ModuleType("triton_python_backend_utils")
    functions = {
        "Tensor": Tensor,
        "TritonError": TritonError,
        "InferenceResponse": InferenceResponse,
        "get_input_tensor_by_name": lambda request, name: next(tensor for tensor in request if tensor.name == name),
    }
    for name, value in functions.items():
        setattr(module, name, value)
    return module


def start(model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model of the Python backend, as Triton starts it: model.py from its folder, the configuration as JSON."""
    monkeypatch.setitem(__import__("sys").modules, "triton_python_backend_utils", stand_in())
    spec = importlib.util.spec_from_file_location("model", model / "1" / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    started = module.TritonPythonModel()
    config = json_format.MessageToDict(read_config(model), preserving_proto_field_name=True)
    started.initialize({"model_config": json.dumps(config)})
    return started


def files(*contents: bytes) -> list[Tensor]:
    return [Tensor("encoded", np.array([[content] for content in contents], dtype=np.object_))]


def make_bundle_of_every_size(directory: Path) -> Path:
    return make_bundle(directory, largest=128)


@pytest.mark.parametrize(
    "make",
    [make_bundle, make_bundle_of_every_size, make_detection_bundle],
    ids=["classification", "every size", "detection"],
)
def test_the_ensemble_gives_the_predictors_numbers_for_every_photo_of_the_kit(
    make: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, repository = make(tmp_path / "bundle"), tmp_path / "repository"
    assert to_triton(bundle, repository, "--name", "served", "--photos") == 0
    assert sorted(path.name for path in repository.iterdir()) == ["served", "served-photos", "served-prepare"]
    ensemble = read_config(repository / "served-photos")
    assert (ensemble.platform, ensemble.input[0].data_type) == ("ensemble", model_config_pb2.TYPE_STRING)
    declared = {tensor.name: tensor.dims for tensor in (*ensemble.input, *ensemble.output)}
    tensors: dict[str, Any] = {"encoded": files(*(photo.content for photo in kit_photos()[:3]))[0].values}
    for step in ensemble.ensemble_scheduling.step:  # each takes and gives the ensemble's tensors, as its maps say
        inputs = {own: tensors[name] for own, name in step.input_map.items()}
        config = read_config(repository / step.model_name)
        assert {tensor.name for tensor in config.input} == set(inputs)
        assert set(step.output_map) <= {tensor.name for tensor in config.output}
        for tensor in (*config.input, *config.output):  # what Triton asks of an ensemble: -1 goes with every side
            name = {**step.input_map, **step.output_map}[tensor.name]
            before = declared.setdefault(name, tensor.dims)
            assert len(before) == len(tensor.dims)
            assert all(-1 in pair or pair[0] == pair[1] for pair in zip(before, tensor.dims, strict=True))
        if config.backend == "python":
            model = start(repository / step.model_name, monkeypatch)
            (response,) = model.execute([[Tensor(*pair) for pair in inputs.items()]])
            found = {tensor.name: tensor.values for tensor in response.output_tensors}
        else:
            session = onnxruntime.InferenceSession(
                str(repository / step.model_name / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
            )
            names = list(step.output_map)
            found = dict(zip(names, session.run(names, inputs), strict=True))
        tensors |= {name: found[own] for own, name in step.output_map.items()}
    predictor = open_predictor(bundle, device="cpu")
    batch = np.concatenate([predictor.prepare(photo.content).rows for photo in kit_photos()[:3]])
    for name, expected in predictor.run(batch, list(predictor.manifest.outputs)).items():
        np.testing.assert_array_equal(tensors[name], expected)
    assert [output.name for output in ensemble.output] == list(predictor.manifest.outputs)


def test_a_photo_that_cannot_be_read_fails_its_own_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert to_triton(make_bundle(tmp_path / "bundle"), tmp_path / "repository", "--photos") == 0
    model = start(tmp_path / "repository" / "tiny-prepare", monkeypatch)
    good = kit_photos()[0].content
    bad, right = model.execute([files(good, b"text"), files(good)])
    assert bad.error is not None and bad.error.code == TritonError.INVALID_ARG
    assert "found" in str(bad.error) and not bad.output_tensors
    assert right.error is None and right.output_tensors[0].values.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("make", [make_segmentation_bundle, make_video_bundle], ids=["segmentation", "video"])
def test_models_that_make_several_rows_of_a_file_are_refused(
    make: MakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert to_triton(make(tmp_path / "bundle"), tmp_path / "repository", "--photos") == 2
    error = capsys.readouterr().err
    assert "makes several rows of each file" in error and error.count("\n") == 1
    assert not (tmp_path / "repository").exists()


def test_none_of_the_three_takes_the_place_of_one_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, repository = make_bundle(tmp_path / "bundle"), tmp_path / "repository"
    (repository / "tiny-photos").mkdir(parents=True)
    assert to_triton(bundle, repository, "--photos") == 2
    assert "tiny-photos exists already" in capsys.readouterr().err
    assert [path.name for path in repository.iterdir()] == ["tiny-photos"]
