import torch

from export.graphs.half_precision import in_half_precision
from export.tasks.base import ENCODER
from export.tasks.classification import ClassifierGraph
from export.verification.inputs import Batch
from export.verification.overflow import find_overflow
from tests.export.conftest import SIZE, tiny_classifier

NOISE = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
BATCHES = [Batch("zeros", torch.zeros(1, 3, *SIZE).numpy()), Batch("noise", NOISE.numpy())]


def wrapper_with(path: str, factor: float) -> ClassifierGraph:
    """A classifier one of whose layers gives larger values."""
    torch.manual_seed(0)
    wrapper = ClassifierGraph(tiny_classifier()).eval()
    with torch.no_grad():
        for parameter in wrapper.model.get_submodule(path).parameters():
            parameter.mul_(factor)
    return wrapper


def test_nothing_overflows_in_a_model_of_usual_size() -> None:
    wrapper = wrapper_with("encoder", 1)
    assert find_overflow(in_half_precision(wrapper, ENCODER, "fp16"), wrapper, BATCHES) is None


def test_the_layer_that_overflows_is_named_with_what_it_gives() -> None:
    wrapper = wrapper_with("encoder.blocks2.0.mlp.fc2", 1e5)
    with torch.no_grad():
        wrapper.model.get_parameter("encoder.blocks2.0.mlp.fc1.weight").mul_(20)  # what goes in is large, too
    overflow = find_overflow(in_half_precision(wrapper, ENCODER, "fp16"), wrapper, BATCHES)
    assert overflow is not None and overflow.module == "encoder.blocks2.0.mlp.fc2"
    assert 65504 < overflow.largest < 1e7
    assert str(overflow).startswith(f"{overflow.module} overflows float16 on {overflow.batch.name}: it gives up to ")
    assert str(overflow).endswith("in float32, and float16 ends at 65504; export bf16 instead")


def test_a_sum_that_overflows_is_its_block_s() -> None:
    wrapper = wrapper_with("encoder.blocks1.0.mlp.fc2", 1)
    with torch.no_grad():
        block = wrapper.model.encoder.blocks1[0]
        block.conv2.bias.fill_(60000.0)  # type: ignore[union-attr, operator]
        block.mlp.fc2.bias.fill_(60000.0)  # type: ignore[union-attr, operator]
    overflow = find_overflow(in_half_precision(wrapper, ENCODER, "fp16"), wrapper, BATCHES)
    assert overflow is not None and overflow.module == "encoder.blocks1.0"
