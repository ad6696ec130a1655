"""A model of Triton's Python backend: photos as files become what the graph is given, as the bundle says.

Copied to NAME-prepare/1/model.py. It needs convmae_deploy in the server's Python and nothing of this folder.
"""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # type: ignore[import-not-found]

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.images import ImageLimits, decode_image
from convmae_deploy.tasks import TASKS


class TritonPythonModel:
    """What the backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the preprocessing from the model's configuration."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.task = TASKS[parameters["task"]]
        self.spec = self.task.PREPROCESSING.model_validate_json(parameters["preprocessing"])
        self.limits = ImageLimits(halve=self.task.HALVES)
        self.output = config["output"][0]["name"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response for each request; a photo that cannot be read fails its own alone."""
        return [self._response(request) for request in requests]

    def _response(self, request: Any) -> Any:
        files = triton.get_input_tensor_by_name(request, "encoded").as_numpy().ravel()
        try:
            images = [self._prepare(bytes(file)) for file in files]
        except ConvMAEError as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error), triton.TritonError.INVALID_ARG))
        return triton.InferenceResponse(output_tensors=[triton.Tensor(self.output, np.stack(images))])

    def _prepare(self, content: bytes) -> np.ndarray[Any, Any]:
        return self.task.pixels(decode_image(content, limits=self.limits).image, self.spec)
