"""The whole way to an int8 file, and the sentences on it."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from rich.console import Console

from convmae_deploy.backends.runtimes import RuntimeOptions
from convmae_deploy.bundle.manifest import BundleFile, InputSpec, Licence, Manifest, OutputSpec
from convmae_deploy.bundle.numerics import Quantisation
from convmae_deploy.bundle.preprocessing import standard_preprocessing
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import load_bundle
from convmae_deploy.tasks.classification import CLASSIFIER_OUTPUTS, Classifier
from export import __main__ as program
from export.graphs.half_precision import HalfPrecision
from export.graphs.to_onnx import OPSET, ExportedGraph
from export.int8.maker import Int8Maker, Int8Options, Metric
from export.int8.quantisation import quantise
from export.runtimes.runners import open_graph
from export.verification.elementwise import VerificationError
from export.verification.samples import made_photos
from tests.bundle_factory import open_as
from tests.export.conftest import CLASSES, MAX_BATCH, SIZE
from tests.export.int8.test_sensitivity import BAD, prepared, with_outlier

COMMAND = ("python", "-m", "export", "run", "--out", "a folder")


def manifest() -> Manifest:
    height, width = SIZE
    channels = {"e1": (16, 4), "e2": (24, 8), "e3": (32, 16), "e4": (32, 32)}
    maps = {
        name: OutputSpec(shape=(depth, height // stride, width // stride), stride=stride)
        for name, (depth, stride) in channels.items()
    }
    return Manifest(
        name="tiny",
        task="classification",
        variant="custom",
        input=InputSpec(shape=(3, *SIZE), max_batch=MAX_BATCH),
        preprocessing=standard_preprocessing(SIZE),
        classes=CLASSES,
        outputs={"logits": OutputSpec(shape=(len(CLASSES),)), "pooled": OutputSpec(shape=(32,)), **maps},
        files={"model.int8.onnx": BundleFile(sha256="0" * 64, bytes=1, precision="int8", opset=OPSET)},
        tools={},
        licence=Licence(name="none"),
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, picture in enumerate(made_photos(24)):
        picture.resize((150, 110)).save(folder / f"{index:02}.png")
    return folder


def maker(
    photos: Path, failed: Path, *, max_drop: float, output: io.StringIO | None = None, exclude: tuple[str, ...] = ()
) -> Int8Maker:
    options = Int8Options(calibrate=photos, max_drop=max_drop, exclude=exclude, cache=failed.with_name("ranges"))
    return Int8Maker(manifest(), options, Console(file=output or io.StringIO()), failed=failed, command=COMMAND)


def closeness(
    reference: onnx.ModelProto, found: onnx.ModelProto, images: list[np.ndarray], *, optimised: bool = True
) -> float:
    """100 less how far the logits of a graph are from those of the fp32 graph, in percent of them."""
    sides = []
    for model in (reference, found):
        session = open_graph("onnxruntime", model.SerializeToString(), optimised=optimised)
        sides.append(np.concatenate([session.run(["logits"], {"image": image})["logits"] for image in images]))
    return float(100 - 100 * np.linalg.norm(sides[1] - sides[0]) / np.linalg.norm(sides[0]))


def test_the_layer_made_bad_goes_back_to_fp32_and_no_other(
    graph: ExportedGraph, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ExportedGraph(with_outlier(graph), graph.program, graph.outputs)
    images = [Classifier.pixels(photo, standard_preprocessing(SIZE))[None] for photo in made_photos(4)]
    model, layers, ranges = prepared(broken.model)
    others = [layer for layer in layers if layer.name != BAD]
    everything, without = (closeness(model, quantise(model, chosen, ranges), images) for chosen in (layers, others))
    assert without > everything + 1

    def measure(self: Metric, found: onnx.ModelProto, name: str) -> float:
        self.name, self.samples = "closeness", 4
        self.reference = 100.0
        return closeness(model, found, images)

    monkeypatch.setattr(Metric, "measure", measure)
    output = io.StringIO()
    allowed = 100 - (everything + without) / 2
    record = maker(photos, tmp_path / "failed", max_drop=allowed, output=output).make(broken).quantisation
    assert record is not None
    assert record.returned == (BAD,)
    assert record.layers == len(layers) - 1
    assert f"{BAD} in fp32" in output.getvalue().replace("\n", " ")
    assert not (tmp_path / "failed").exists()


def test_the_record_says_what_was_measured_on_what(graph: ExportedGraph, photos: Path, tmp_path: Path) -> None:
    record = maker(photos, tmp_path / "failed", max_drop=50).make(graph).quantisation
    assert record is not None
    assert record.calibrated_on == f"12 photos of {photos.name}" and record.samples == 12
    assert record.metric == (
        f"agreement with fp32 (photos that are no near tie) on 12 photos of {photos.name} that are not calibrated on"
    )
    assert record.fp32 == 100 and record.drop <= 50 and record.max_drop == 50


def test_int8_fp16_is_the_fp16_graph_with_the_same_layers_in_int8(
    half_graphs: dict[HalfPrecision, ExportedGraph], graph: ExportedGraph, photos: Path, tmp_path: Path
) -> None:
    half = half_graphs["fp16"]
    made = maker(photos, tmp_path / "failed", max_drop=50)
    full, mixed = made.make(graph), made.make(graph, half)
    assert full.quantisation is not None and mixed.quantisation is not None
    assert mixed.quantisation.layers == full.quantisation.layers == 22
    onnx.checker.check_model(mixed.model, full_check=True)  # of types and shapes too
    stored = {tensor.name: tensor.data_type for tensor in mixed.model.graph.initializer}
    scales = [stored[node.input[1]] for node in mixed.model.graph.node if node.op_type == "DequantizeLinear"]
    assert set(scales) == {TensorProto.FLOAT16} and len(scales) >= 40
    images = [Classifier.pixels(photo, standard_preprocessing(SIZE))[None] for photo in made_photos(4)]
    # as it is written: some CPUs' products of int8 saturate
    assert closeness(full.model, mixed.model, images, optimised=False) > 97
    assert closeness(half.model, mixed.model, images, optimised=False) < 99.9


def test_an_excluded_layer_stays_out_and_a_wrong_name_is_one_sentence(
    graph: ExportedGraph, photos: Path, tmp_path: Path
) -> None:
    made = maker(
        photos, tmp_path / "failed", max_drop=50, exclude=("encoder.patch_embed4", "encoder.blocks3.*.fc1")
    ).make(graph)
    record = made.quantisation
    assert record is not None and record.layers == 19
    assert record.excluded == ("encoder.patch_embed4", "encoder.blocks3.0.mlp.fc1", "encoder.blocks3.1.mlp.fc1")
    for module, in_int8 in (("encoder.patch_embed4", False), ("encoder.blocks3.0.mlp.fc2", True)):
        (node,) = (
            node
            for node in made.model.graph.node
            if node.op_type in ("Conv", "Gemm", "MatMul")
            and any(entry.value == module for entry in node.metadata_props)
        )
        assert ("Dequantize" in node.input[0]) == in_int8
    with pytest.raises(ConvMAEError, match=r"such as encoder.blocks1.0.mlp.fc1, .*; none of its 22 layers fits 'fc1'"):
        maker(photos, tmp_path / "failed", max_drop=50, exclude=("fc1",)).make(graph)
    with pytest.raises(ConvMAEError, match="must leave a layer for int8"):
        maker(photos, tmp_path / "failed", max_drop=50, exclude=("*",)).make(graph)


def test_the_same_photos_give_the_same_file(graph: ExportedGraph, photos: Path, tmp_path: Path) -> None:
    first, second = (maker(photos, tmp_path / "failed", max_drop=50).make(graph) for _ in range(2))
    assert first.model.SerializeToString(deterministic=True) == second.model.SerializeToString(deterministic=True)
    assert first.quantisation == second.quantisation
    assert first.quantisation is not None and first.quantisation.returned == ()


def test_a_metric_that_never_holds_leaves_what_was_tried(
    graph: ExportedGraph, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(self: Metric, model: onnx.ModelProto, name: str) -> float:
        self.name, self.samples = "top-1", 12
        return 100.0 if name == "fp32" else 40.0

    monkeypatch.setattr(Metric, "measure", measure)
    failed = tmp_path / "bundle.failed"
    with pytest.raises(VerificationError, match=r"within 1 points of fp32's 100.00 %; the best was 40.00 %") as caught:
        maker(photos, failed, max_drop=1).make(graph)
    assert str(failed) in str(caught.value)
    assert {path.name for path in failed.iterdir()} == {"model.onnx", "model.int8.onnx", "report.json", "command.txt"}
    report = json.loads((failed / "report.json").read_text())
    assert report["steps"][0] == {"int8": 40.0, "in_fp32": []}
    assert len(report["steps"][-1]["in_fp32"]) == len(report["errors"]) - 1
    assert (failed / "command.txt").read_text() == "python -m export run --out 'a folder'\n"


@pytest.mark.parametrize(
    "arguments", [["--precision", "int8"], ["--precision", "int8-fp16"], ["--calibrate", "photos"]]
)
def test_int8_and_its_photos_need_each_other(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="--precision int8 or int8-fp16 and --calibrate FOLDER"):
        program.main(["run", "--out", str(tmp_path / "bundle"), *arguments])


def test_a_drop_is_in_points() -> None:
    with pytest.raises(ConvMAEError, match="--max-drop must be between 0 and 100 points; got -1"):
        Int8Options(calibrate=Path("photos"), max_drop=-1)


def test_the_program_writes_an_int8_file_that_a_predictor_runs(
    checkpoint: Path, graph: ExportedGraph, photos: Path, tmp_path: Path, export_gives: Callable[[ExportedGraph], None]
) -> None:
    export_gives(graph)
    out = tmp_path / "bundle"
    program.main(
        ["--precision", "int8", "--calibrate", str(photos), "--max-drop", "50", "--exclude", "encoder.patch_embed1"]
        + [str(checkpoint), "--out", str(out), "--max-batch", "2", "--calibration-cache", str(tmp_path / "ranges")]
    )
    bundle = load_bundle(out)
    assert list(bundle.manifest.files) == ["model.onnx", "model.int8.onnx"]
    file = bundle.manifest.files["model.int8.onnx"]
    assert file.precision == "int8" and isinstance(file.quantisation, Quantisation)
    assert file.numerics is not None and file.numerics.passed
    assert all(row.snr_db is not None and row.snr_db < 60 for row in file.numerics.outputs.values())
    assert file.quantisation.layers == 21 and str(photos.parent) not in bundle.manifest.model_dump_json()
    predictor = open_as(Classifier, out, device="cpu", options=RuntimeOptions(file="model.int8.onnx"))
    image = np.zeros((1, 3, *SIZE), np.float32)
    assert set(predictor.run(image, CLASSIFIER_OUTPUTS)) == set(CLASSIFIER_OUTPUTS)
