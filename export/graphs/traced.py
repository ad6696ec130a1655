"""Running the traced program that a graph was translated from, to look at what lies between input and outputs."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from convmae_deploy.backends.base import FloatArray


def intermediate_values(program: ExportedProgram, images: FloatArray, names: Collection[str]) -> dict[str, FloatArray]:
    """PyTorch's value of each named operation, where it is a float32 tensor.

    Args:
        program: the traced program.
        images: (B, 3, H, W), or clips (B, 3, T, H, W).
        names: names of operations of the program.
    """
    recorder = _Recorder(program, set(names))
    recorder.run_on(images)
    return recorder.values


def peak_bytes_per_image(program: ExportedProgram, images: FloatArray) -> int:
    """Rough peak memory of one image in a forward pass: a few copies of the largest tensor, and the outputs."""
    recorder = _Recorder(program, {name for name in program.graph_signature.user_outputs if isinstance(name, str)})
    recorder.run_on(images)
    outputs = sum(value.nbytes for value in recorder.values.values())
    return (4 * 4 * recorder.largest + 2 * outputs) // len(images)


def module_of(node: Node) -> str:
    """Path of the module whose forward made this operation; empty for the outermost."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths else ""


class _Recorder(Interpreter):
    """Runs a program, keeps chosen values and the size of the largest."""

    def __init__(self, program: ExportedProgram, names: set[str]) -> None:
        super().__init__(program.graph_module)
        self.program = program
        self.names = names
        self.values: dict[str, FloatArray] = {}
        self.largest = 0  # entries

    @torch.inference_mode()
    def run_on(self, images: FloatArray) -> None:
        """Runs on `images` (B, 3, ...) with the program's own weights and constants."""
        signature = self.program.graph_signature
        lifted = (
            signature.inputs_to_parameters | signature.inputs_to_buffers | signature.inputs_to_lifted_tensor_constants
        )
        stored = self.program.constants | self.program.state_dict
        placeholders = [node.name for node in self.program.graph.nodes if node.op == "placeholder"]
        self.run(*(stored[lifted[name]] if name in lifted else torch.from_numpy(images) for name in placeholders))

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op == "call_function":
            self.largest = max(self.largest, value.numel(), self._attention_scores(n))
            if n.name in self.names and value.dtype == torch.float32:
                self.values[n.name] = value.numpy().copy()
        return value

    def _attention_scores(self, node: Node) -> int:
        """Entries of the (B, heads, N, N) scores, which the ONNX graph makes and PyTorch's fused operation does not."""
        if node.target != torch.ops.aten.scaled_dot_product_attention.default:
            return 0
        query, key = (self.env[source] for source in node.args[:2] if isinstance(source, Node))
        return int(query.numel() // query.shape[-1] * key.shape[-2])
