"""One way through a session of ONNX Runtime on a GPU, which takes one batch at a time.

The batch is copied into memory of the GPU that stays where it is, and the outputs stay there until the run is over:
then those that were asked for are copied back, in one go. So a batch is copied while another one runs.

The tests run it on ONNX Runtime's CPU provider; nobody has run it on a GPU yet.
"""

from collections.abc import Sequence
from typing import Any

import onnxruntime

from convmae_deploy.backends.base import InputArray, Outputs

SHAPES = 16  # of batches whose memory is kept; a server has as many as it has batch sizes


class Lane:
    """See the module's text; not for several threads at once."""

    def __init__(self, session: Any, input_name: str, device: str) -> None:
        """
        Args:
            session: an `InferenceSession`.
            input_name: of its one input.
            device: ONNX Runtime's name of where it runs, "cuda"; "cpu" for tests.
        """
        self._session, self._input, self._device = session, input_name, device
        self._binding = session.io_binding()
        self._copies: dict[tuple[Any, ...], Any] = {}  # batches on the device, by shape and type

    def run(self, image: InputArray, outputs: Sequence[str]) -> Outputs:
        """Runs a batch, contiguous; the outputs by name, in memory of their own."""
        copy = self._copy(image)
        copy.update_inplace(image)
        self._binding.bind_ortvalue_input(self._input, copy)
        self._binding.clear_binding_outputs()
        for name in outputs:
            self._binding.bind_output(name, self._device)
        self._session.run_with_iobinding(self._binding)
        return dict(zip(outputs, self._binding.copy_outputs_to_cpu(), strict=True))

    def _copy(self, image: InputArray) -> Any:
        key = *image.shape, image.dtype
        if key not in self._copies:
            if len(self._copies) == SHAPES:  # of a graph for every size
                self._copies.clear()
            make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
            self._copies[key] = make(image.shape, image.dtype.type, self._device)
        return self._copies[key]
