"""What a kit is held against: arrays that a program wrote, a graph, a server of the Open Inference Protocol."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.backends.base import FloatArray, Outputs
from convmae_deploy.backends.onnxruntime_backend import open_graph
from convmae_deploy.bundle.manifest import Manifest
from convmae_deploy.conformance.judging import Run
from convmae_deploy.conformance.kit import kit_outputs
from convmae_deploy.conformance.mistakes import levels_of
from convmae_deploy.errors import ConvMAEError, ModelError
from convmae_deploy.files import open_regular, shortened

ENCODED = "encoded"  # what our server and our ensemble call the input for files
SECONDS = 60.0  # that a server may take for an answer
MAX_ANSWER_BYTES = 2**30
TYPES = {"FP32": "<f4", "INT64": "<i8"}
LENGTH_HEADER = "Inference-Header-Content-Length"


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: it would take photos and the key to a server that nobody named."""

    def redirect_request(self, *about: object) -> None:
        """Nothing to ask, so that the answer stays what it is."""


_OPENER = urllib.request.build_opener(_Stay)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file that a program wrote.

    Raises:
        ConvMAEError: it is no such file.
    """
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
            if isinstance(arrays, np.ndarray):
                raise ValueError("it holds one array without a name")
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        reason = getattr(error, "strerror", None) or "it is something else, or cut off"
        raise ConvMAEError(f"{path} must be an .npz file of numeric arrays ({reason}); write it again") from None


def graph_runner(path: Path, manifest: Manifest) -> Run:
    """A graph in ONNX Runtime, given what the bundle's graphs are given; one of 8 bits a channel is given levels.

    Raises:
        ConvMAEError: it does not load, or has more inputs than one.
    """
    try:
        opened = open_graph(path)
    except Exception as error:  # runtimes' exceptions have no common base
        reason = " ".join(str(error).split())
        raise ConvMAEError(f"ONNX Runtime cannot load {path} ({reason}); give an ONNX graph that it can run") from None
    if len(opened.inputs) != 1:
        raise ConvMAEError(f"{path} must have one input, as the bundle's graphs have; found {', '.join(opened.inputs)}")
    (name,) = opened.inputs
    wanted = [output for output in kit_outputs(manifest) if output in opened.outputs]
    if not wanted:
        outputs = ", ".join(kit_outputs(manifest))
        raise ConvMAEError(f"{path} must have an output among {outputs}; found {', '.join(opened.outputs)}")

    def run(image: FloatArray) -> Outputs:
        levels = levels_of(image[0], manifest.preprocessing)[None].round().clip(0, 255).astype(np.uint8)
        try:
            return opened.run(wanted, {name: levels if opened.takes_bytes else image})
        except Exception as error:  # as above
            raise ModelError(f"ONNX Runtime could not run {path} ({' '.join(str(error).split())})") from None

    return run


class Server:
    """A model on a server that speaks version 2 of the protocol: Triton, KServe, ours.

    Args:
        url: of the server, or of the model (`http://host/v2/models/NAME`).
        manifest: of the bundle that is to be behind it.
        key: sent as `Authorization: Bearer`; None: nothing is.

    Raises:
        ConvMAEError: there is no such model, or it has none of the bundle's outputs.
    """

    def __init__(self, url: str, manifest: Manifest, key: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConvMAEError(f"expected http://HOST:PORT or https://HOST:PORT; got {shortened(url)}")
        base = url.rstrip("/")
        self.url = base if "/v2/models/" in base else f"{base}/v2/models/{quote(manifest.name)}"
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._input, self._dtype = manifest.input.name, np.dtype(manifest.input.dtype).newbyteorder("<")
        self._kind = {"float32": "FP32", "uint8": "UINT8"}[manifest.input.dtype]
        about = self._json(self._ask(self.url)[0])
        inputs, outputs = _tensors(about, "inputs"), _tensors(about, "outputs")
        self.outputs = [name for name in kit_outputs(manifest) if name in outputs]
        if not self.outputs:
            wanted = ", ".join(kit_outputs(manifest))
            raise ConvMAEError(f"{self.url} must have an output among {wanted}; found {', '.join(outputs) or 'none'}")
        files = [name for name, (kind, _) in inputs.items() if kind == "BYTES"]
        self._files = ENCODED if ENCODED in files else next(iter(files), None)
        self._file_axes = 1 if self._files is None else len(inputs[self._files][1])
        self.takes_files = self._files is not None
        self.takes_inputs = inputs.get(self._input, ("", []))[0] == self._kind
        if not (self.takes_files or self.takes_inputs):
            raise ConvMAEError(
                f"{self.url} must have the input {self._input} of {self._kind}, or one of BYTES for files; found "
                f"{', '.join(f'{name} of {kind}' for name, (kind, _) in inputs.items()) or 'none'}"
            )

    def run_input(self, image: FloatArray) -> Outputs:
        """What it gives for (1, 3, H, W), prepared."""
        return self._infer(
            self._input, self._kind, list(image.shape), np.ascontiguousarray(image, self._dtype).tobytes()
        )

    def run_file(self, content: bytes) -> Outputs:
        """What it gives for a photo's file, each (1, ...)."""
        assert self._files is not None
        body = len(content).to_bytes(4, "little") + content
        return self._infer(self._files, "BYTES", [1] * self._file_axes, body)

    def _infer(self, name: str, kind: str, shape: list[int], data: bytes) -> Outputs:
        request = {
            "inputs": [{"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(data)}}],
            "outputs": [{"name": output, "parameters": {"binary_data": True}} for output in self.outputs],
        }
        head = json.dumps(request).encode()
        headers = {LENGTH_HEADER: str(len(head)), "Content-Type": "application/octet-stream"}
        content, length = self._ask(f"{self.url}/infer", head + data, headers)
        answer, rest = self._json(content[:length]), memoryview(content)[len(content) if length is None else length :]
        try:
            found: Outputs = {}
            for output in answer["outputs"]:
                size = (output.get("parameters") or {}).get("binary_data_size")
                dtype = TYPES[output["datatype"]]
                values = np.array(output["data"], dtype) if size is None else np.frombuffer(rest[:size], dtype)
                rest = rest[size or 0 :]
                found[output["name"]] = values.reshape([int(side) for side in output["shape"]])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ConvMAEError(f"{self.url}/infer must answer as the protocol says; got other JSON") from None
        return found

    def _ask(
        self, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[bytes, int | None]:
        """The body of an answer, and how much of it is JSON where it says so."""
        request = urllib.request.Request(url, body, {**self._headers, **(headers or {})})
        try:
            with _OPENER.open(request, timeout=SECONDS) as answer:
                content = answer.read(MAX_ANSWER_BYTES)
                length = answer.headers.get(LENGTH_HEADER)
        except urllib.error.HTTPError as error:
            said = " ".join(error.read(1000).decode("utf-8", "replace").split())
            raise ConvMAEError(
                f"{url} answered {error.code} ({shortened(said, 300)}); check the address, the model's name and the key"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ConvMAEError(f"{url} does not answer ({reason}); check the address and that it runs") from None
        return content, int(length) if length is not None and length.isascii() and length.isdigit() else None

    def _json(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise ConvMAEError(f"{self.url} must answer with JSON, as the protocol says; got other bytes") from None


def _tensors(about: Any, kind: str) -> dict[str, tuple[str, list[Any]]]:
    """Name -> datatype and shape, of a model's inputs or outputs."""
    found = about.get(kind) if isinstance(about, dict) else None
    return {
        str(one.get("name")): (str(one.get("datatype")), list(one.get("shape") or []))
        for one in (found if isinstance(found, Sequence) else [])
        if isinstance(one, dict)
    }
