"""Asks a server through KServe's client; run by the Python of .venv/kserve, and prints what it found as JSON.

python kserve_client.py URL PHOTO
"""

import asyncio
import base64
import json
import sys
from pathlib import Path

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def ask(url: str, photo: bytes) -> dict[str, object]:
    """What the server answers in both of KServe's protocols."""
    second = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    first = InferenceRESTClient(RESTConfig(protocol="v1", timeout=60))
    batch = np.zeros((1, 3, 64, 64), dtype=np.float32)
    found: dict[str, object] = {
        "live": await second.is_server_live(url),
        "ready": await second.is_server_ready(url),
        "model": await second.is_model_ready(url, "tiny"),
        "first": await first.is_model_ready(url, "tiny"),
    }
    for name, binary in (("json", False), ("binary", True)):
        tensor = InferInput("image", list(batch.shape), "FP32")
        tensor.set_data_from_numpy(batch, binary_data=binary)
        answer = await second.infer(url, InferRequest("tiny", [tensor]), model_name="tiny")
        found[name] = {output.name: output.as_numpy().tolist() for output in answer.outputs}
    files = InferInput("encoded", [1], "BYTES")
    files.set_data_from_numpy(np.array([photo], dtype=np.object_), binary_data=True)
    answer = await second.infer(url, InferRequest("tiny", [files]), model_name="tiny")
    result = next(output for output in answer.outputs if output.name == "result")
    found["result"] = json.loads(result.as_numpy().ravel()[0])
    instances = {"instances": [{"b64": base64.b64encode(photo).decode()}]}
    found["predictions"] = (await first.infer(url, instances, model_name="tiny"))["predictions"]
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(ask(sys.argv[1], Path(sys.argv[2]).read_bytes()))))
