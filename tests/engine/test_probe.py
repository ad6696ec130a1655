"""The converged probe: at its optimum the gradient is zero, and what can be told apart is told apart."""

import torch
import torch.nn.functional as F

from convmae_deploy.engine.probe import probe_logits


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (300,), generator=generator)
    centres = torch.randn(3, 8, generator=generator) * 3
    return centres[labels] + torch.randn(300, 8, generator=generator), labels


def test_classes_that_can_be_told_apart_are() -> None:
    features, labels = data()
    features = torch.cat([features, torch.full((300, 1), 7.0)], dim=1)  # a constant one changes nothing
    logits = probe_logits(features[:200], labels[:200], features[200:])
    assert logits.shape == (100, 3) and (logits.argmax(dim=1) == labels[200:]).double().mean() > 0.95
    assert torch.allclose(logits, probe_logits(features[:200, :8], labels[:200], features[200:, :8]), atol=1e-4)


def test_the_penalised_loss_has_no_slope_where_it_ends() -> None:
    features, labels = data()
    features = (features - features.mean(dim=0)) / features.std(dim=0, correction=0)
    logits = probe_logits(features, labels, features)
    # The weights from the logits, and the gradient of the loss by them in closed form.
    extended = torch.cat([features.double(), torch.ones(300, 1)], dim=1)
    weights = torch.linalg.lstsq(extended, logits).solution  # (D + 1, K)
    residual = logits.softmax(dim=1) - F.one_hot(labels, 3)
    slope = extended.T @ residual / 300
    slope[:-1] += weights[:-1] / 300
    assert slope.abs().max() < 1e-4


def test_scale_and_place_of_the_features_do_not_matter() -> None:
    features, labels = data()
    moved = features * torch.tensor([1e-3, 1, 10, 100, 1, 1, 5, 0.1]) + 20
    assert torch.allclose(probe_logits(features, labels, features), probe_logits(moved, labels, moved), atol=1e-2)
