"""Half precision as it is declared: what the modules compute in, and what the graph's nodes say."""

from collections.abc import Callable

import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, shape_inference
from torch import Tensor, nn

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.attention import TableBias
from convmae_deploy.models.classifier import build_video_classifier
from convmae_deploy.models.convmae import ConvMAEConfig, DenseConfig
from convmae_deploy.models.detector import DetectorConfig, build_detector
from convmae_deploy.models.segmenter import SegmenterConfig, build_segmenter
from convmae_deploy.models.video import VideoConfig
from convmae_deploy.tasks.classification import CLASSIFIER_OUTPUTS as OUTPUTS
from export.graphs.half_precision import (
    DTYPES,
    FLOAT32_LAYERS,
    HalfPrecision,
    SoftmaxInFloat32,
    attention,
    cast,
    fold_batch_norms,
    in_half_precision,
)
from export.graphs.slotwise import replace_depthwise_3d
from export.graphs.static_detector import DENSE, StaticDetector
from export.graphs.static_detector import OUTPUTS as DETECTED
from export.graphs.to_onnx import ExportedGraph
from export.tasks import detection, segmentation
from export.tasks.base import ENCODER
from export.tasks.classification import ClassifierGraph
from export.tasks.segmentation import SegmenterGraph
from export.tasks.video import VideoClassifierGraph
from export.verification.gates import GATES, signal_to_noise
from tests.export.conftest import HALF, SIZE, tiny_classifier
from tests.export.tiny_detectors import little_suppression

SIDE = 64
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def encoder(**dense: object) -> ConvMAEConfig:
    return ConvMAEConfig(
        embed_dims=(8, 16, 32),
        depths=(1, 1, 2),
        mlp_ratios=(2, 2, 2),
        num_heads=2,
        image_size=(SIDE, SIDE),
        dense=DenseConfig(**dense),  # type: ignore[arg-type]
    )


def segmenter_wrapper() -> nn.Module:
    config = encoder(relative_position="per_block", layer_scale=True)
    parts = SegmenterConfig(channels=16, auxiliary_channels=8, e4="convolution")
    return SegmenterGraph(build_segmenter(config, parts, num_classes=4))


def detector_wrapper(**dense: object) -> nn.Module:
    model = build_detector(encoder(**dense), DetectorConfig(channels=16, fc_width=32), num_classes=3)
    return StaticDetector(model.eval(), (SIDE, SIDE))


def video_wrapper() -> nn.Module:
    wrapper = VideoClassifierGraph(build_video_classifier(encoder(), VideoConfig(frames=4), num_classes=3))
    wrapper.requires_grad_(False)
    replace_depthwise_3d(wrapper)
    return wrapper


WRAPPERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "classifier": (lambda: ClassifierGraph(tiny_classifier()), (3, *SIZE)),
    "segmenter": (segmenter_wrapper, (3, SIDE, SIDE)),
    "detector": (detector_wrapper, (3, SIDE, SIDE)),
    "shared windows": (lambda: detector_wrapper(relative_position="shared", window_size=2), (3, SIDE, SIDE)),
    "decomposed": (lambda: detector_wrapper(relative_position="decomposed", window_size=3), (3, SIDE, SIDE)),
    "resized": (
        lambda: detector_wrapper(relative_position="decomposed", relative_size=(128, 128)),
        (3, SIDE, SIDE),
    ),
    "video": (video_wrapper, (3, 4, SIDE, SIDE)),
}


PARTS = {"segmenter": segmentation.HALF, "classifier": ENCODER, "video": ENCODER}  # of the others: a detector's


def random_wrapper(name: str) -> tuple[nn.Module, Tensor]:
    """A wrapper with random weights and statistics, and two inputs for it."""
    torch.manual_seed(0)
    build, shape = WRAPPERS[name]
    wrapper = build().eval()
    with torch.no_grad():
        for parameter in wrapper.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        for module in wrapper.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_()
    return wrapper, torch.randn(2, *shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("precision", HALF)
@little_suppression()
@torch.inference_mode()
def test_each_model_gives_its_numbers_in_half_precision_as_float32(name: str, precision: HalfPrecision) -> None:
    wrapper, images = random_wrapper(name)
    before = {key: value.clone() for key, value in wrapper.state_dict().items()}
    half = in_half_precision(wrapper, PARTS.get(name, detection.HALF), precision)
    expected, found = wrapper(images), half(images)
    assert [value.dtype for value in found] == [value.dtype for value in expected]
    dense = slice(len(DETECTED), len(DETECTED) + len(DENSE)) if isinstance(wrapper, StaticDetector) else slice(None)
    noises = [
        signal_to_noise(float(want.norm()), float((want - got).norm()))
        for want, got in list(zip(expected, found, strict=True))[dense]  # behind them regions change places
    ]
    assert min(noises) > GATES[precision].snr_db
    assert max(noises) < 110, "something was not rounded"
    assert all(torch.equal(before[key], value) for key, value in wrapper.state_dict().items())


@pytest.mark.parametrize("name", WRAPPERS)
def test_layers_of_float32_keep_their_weights_and_all_others_of_a_part_have_none(name: str) -> None:
    wrapper, _ = random_wrapper(name)
    parts = PARTS.get(name, detection.HALF)
    half = in_half_precision(wrapper, parts, "bf16")
    model = half.get_submodule("model")
    inside = tuple(f"{path}." for path in parts.half)
    for path, module in model.named_modules():
        expected = torch.float32
        if f"{path}.".startswith(inside) and path not in parts.float32 and not isinstance(module, FLOAT32_LAYERS):
            expected = torch.bfloat16
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            assert tensor.dtype == expected or not tensor.is_floating_point(), path


@pytest.fixture(params=HALF)
def half_graph(
    request: pytest.FixtureRequest, half_graphs: dict[HalfPrecision, ExportedGraph]
) -> tuple[HalfPrecision, ExportedGraph]:
    return request.param, half_graphs[request.param]


def float_types(model: onnx.ModelProto) -> dict[str, int]:
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: kind for name, kind in types.items() if kind in FLOATS}


def test_nodes_have_the_types_that_are_declared(half_graph: tuple[HalfPrecision, ExportedGraph]) -> None:
    precision, graph = half_graph
    types = float_types(graph.model)
    half = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    wanted = {
        "LayerNormalization": TensorProto.FLOAT,
        "Softmax": TensorProto.FLOAT,
        "ReduceMean": TensorProto.FLOAT,  # of the tokens
        "Gemm": TensorProto.FLOAT,  # the head
        "MatMul": half,
        "Conv": half,
        "Gelu": half,
        "MaxPool": half,
    }
    seen = set()
    for node in graph.model.graph.node:
        if node.op_type in wanted:
            assert types[node.output[0]] == wanted[node.op_type], node.name
            seen.add(node.op_type)
    assert seen == set(wanted)
    norms = sum(isinstance(module, nn.LayerNorm) for module in tiny_classifier().modules())
    assert sum(node.op_type == "LayerNormalization" for node in graph.model.graph.node) == norms


def test_no_node_mixes_types_and_input_and_outputs_are_float32(
    half_graph: tuple[HalfPrecision, ExportedGraph],
) -> None:
    _, graph = half_graph
    types = float_types(graph.model)
    for node in graph.model.graph.node:
        assert len({types[name] for name in node.input if name in types}) <= 1, node.name
    ends = (*graph.model.graph.input, *graph.model.graph.output)
    assert {types[value.name] for value in ends} == {TensorProto.FLOAT}
    assert [output.name for output in graph.model.graph.output] == list(OUTPUTS)


def test_attention_is_pytorch_s_but_for_its_softmax_in_float32() -> None:
    torch.manual_seed(0)
    query, key, value, bias = (torch.randn(2, 3, 5, size) for size in (4, 4, 4, 5))
    expected = F.scaled_dot_product_attention(query, key, value, bias)
    torch.testing.assert_close(attention(query, key, value, bias), expected)
    with SoftmaxInFloat32():
        # in float16 both scores would be infinite: 2 * 200 * 200 / sqrt(2) fits, the sum of their exponentials does not
        large = torch.full((1, 1, 2, 2), 200.0, dtype=torch.float16)
        found = F.scaled_dot_product_attention(large, large, large)
    assert found.dtype == torch.float16 and torch.equal(found, large)


def test_batch_norms_become_part_of_their_convolutions() -> None:
    wrapper, images = random_wrapper("segmenter")
    wrapper, images = wrapper.double(), images.double()  # how far float32 is off depends on the CPU
    with torch.inference_mode():
        (expected,) = wrapper(images)
        fold_batch_norms(wrapper)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in wrapper.modules())
        torch.testing.assert_close(wrapper(images)[0], expected, rtol=1e-9, atol=1e-9)


def test_a_weight_that_float16_does_not_hold_is_refused_by_name_and_bf16_takes_it() -> None:
    wrapper = ClassifierGraph(tiny_classifier())
    with torch.no_grad():
        wrapper.model.encoder.patch_embed4.weight[0, 0] = 1e5
    with pytest.raises(ConvMAEError, match=r"encoder\.patch_embed4\.weight has a weight of 1e\+05.*export it in bf16"):
        in_half_precision(wrapper, ENCODER, "fp16")
    in_half_precision(wrapper, ENCODER, "bf16")


def test_casts_reach_into_containers_and_leave_integers() -> None:
    value = cast(
        ([torch.ones(2)], {"a": TableBias(torch.ones(1))}, torch.ones(1, dtype=torch.int64), None), DTYPES["fp16"]
    )
    assert value[0][0].dtype == value[1]["a"].spread.dtype == torch.float16
    assert value[2].dtype == torch.int64 and value[3] is None
