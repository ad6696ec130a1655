"""Gradients of a whole model, to be compared."""

import torch
from torch import Tensor, nn

from tests.original_files import relative_error


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def assert_gradients_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    errors = {name: relative_error(found[name], gradient) for name, gradient in expected.items()}
    assert max(errors.values()) <= tolerance, max(errors.items(), key=lambda item: item[1])
