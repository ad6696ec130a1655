"""One graph in the runtime of this environment: python run_elsewhere.py RUNTIME GRAPH INPUT.npz OUTPUT.npz

Stands alone, as it runs in environments that hold a runtime and NumPy and nothing else, of any version. INPUT.npz has
the input by its name; OUTPUT.npz gets every output. TensorRT for RTX needs a GPU to run: there it is built alone.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(runtime: str, graph: Path, inputs: Path, outputs: Path) -> None:
    """Runs or builds it; whatever goes wrong is raised."""
    with np.load(inputs) as arrays:
        (name,) = arrays
        found = RUNTIMES[runtime](graph, name, arrays[name])
    np.savez(outputs, **found)


def onnxruntime(graph: Path, name: str, images: Any) -> dict[str, Any]:
    """Every output, on the CPU."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reports its use to its maker otherwise
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: images}), strict=True))


def openvino(graph: Path, name: str, images: Any) -> dict[str, Any]:
    """Every output, on the CPU, in fp32 where the graph does not say otherwise."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)  # it reports its use to its maker otherwise
    import openvino

    compiled = openvino.Core().compile_model(str(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled({name: images})
    return {key: np.array(results[port]) for port in compiled.outputs for key in port.get_names()}


def opencv(graph: Path, name: str, images: Any) -> dict[str, Any]:
    """Every output."""
    cv2: Any = importlib.import_module("cv2")
    net = cv2.dnn.readNetFromONNX(str(graph))
    net.setInput(images, name)
    names = list(net.getUnconnectedOutLayersNames())
    return dict(zip(names, net.forward(names), strict=True))


def tensorrt_rtx(graph: Path, name: str, images: Any) -> dict[str, Any]:
    """An engine for one to two images is built; nothing is run."""
    import tensorrt_rtx as tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise RuntimeError(parser.get_error(0).desc())
    profile = builder.create_optimization_profile()
    profile.set_shape(name, (1, *images.shape[1:]), images.shape, images.shape)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    if builder.build_serialized_network(network, config) is None:
        raise RuntimeError("no engine was built")
    return {}


RUNTIMES = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "opencv-python-headless": opencv,
    "tensorrt-rtx": tensorrt_rtx,
}

if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
