"""Principal components of feature maps: what varies most over the cells, as few channels, for pictures.

Shapes: C channels, N cells (all axes of a map but the first), M the smaller of the two, K components.
"""

import numpy as np
from numpy.typing import NDArray

# Below this share of the first variance a component is rounding of float32, which stretching would show as noise.
NEGLIGIBLE = 1e-9


def principal_components(values: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The leading principal components of a map over its cells.

    Signs are fixed so that the channel with the largest weight in a component has a positive one: equal maps give
    equal components.

    Args:
        values: (C, ...), for instance (C, H, W).
        count: K.

    Returns:
        Projections (K, ...), all zero where the map has no such component, and (K,) shares of the variance in [0, 1].
    """
    cells = values.reshape(len(values), -1).astype(np.float64)  # (C, N)
    cells -= cells.mean(axis=1, keepdims=True)
    narrow = cells if len(cells) <= cells.shape[1] else cells.T  # (M, ...)
    found, vectors = np.linalg.eigh(narrow @ narrow.T)  # ascending
    present = max(0, min(count, int((found > NEGLIGIBLE * found[-1]).sum()))) if found[-1] > 0 else 0
    directions = vectors[:, ::-1][:, :present]  # (M, K)
    if narrow is not cells:
        directions = cells @ directions
        directions /= np.linalg.norm(directions, axis=0)  # (C, K)
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(present)])
    scores = np.zeros((count, cells.shape[1]), dtype=np.float32)
    shares = np.zeros(count, dtype=np.float32)
    scores[:present] = directions.T @ cells
    shares[:present] = found[::-1][:present] / max(float((cells**2).sum()), np.finfo(np.float64).tiny)
    return scores.reshape(count, *values.shape[1:]), shares
