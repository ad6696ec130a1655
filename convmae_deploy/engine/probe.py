"""A linear probe at the optimum of its loss: what it scores depends on the features alone and on no schedule."""

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 200  # of at most 20 evaluations each
CHANGE = 1e-9  # of the loss from one round to the next, below which it has converged


def probe_logits(features_nd: Tensor, labels_n: Tensor, others_md: Tensor) -> Tensor:
    """Logits of multinomial logistic regression, fitted to features and asked about others.

    Features are standardised with the mean and deviation of those it is fitted to. The squares of the weights are
    penalised as scikit-learn's LogisticRegression does by default (C = 1), the bias is not; L-BFGS finds the optimum,
    which is the only one.

    Args:
        features_nd: (n, D), with labels.
        labels_n: (n,), class indices.
        others_md: (m, D).

    Returns:
        (m, K) float64, K the largest label + 1.
    """
    deviation, mean = torch.std_mean(features_nd.double(), dim=0, correction=0)
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))  # a constant says nothing
    known, asked = ((features.double() - mean) / scale for features in (features_nd, others_md))
    classes = int(labels_n.max()) + 1
    weight = torch.zeros(classes, known.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=20, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(known, weight, bias), labels_n)
        value = value + weight.square().sum() / (2 * len(known))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    before = float("inf")
    for _ in range(ROUNDS):
        now = optimizer.step(loss).item()  # type: ignore[no-untyped-call]
        if before - now <= CHANGE * max(1.0, abs(now)):
            break
        before = now
    return F.linear(asked, weight, bias).detach()
