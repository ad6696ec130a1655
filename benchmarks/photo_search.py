"""How well do features find photos of the same class, level by level, and how much noise do they bear?

    python -m benchmarks.photo_search serving/bundles/imagenette-nano --data photos/ [--split val]

Each photo of DATA/SPLIT/<class>/ is looked for among all others by the cosine of their vectors; precision@10 is the
share of the ten nearest that are of its class. Of maps the means over places are taken. The second table holds vectors
with noise against vectors without, as in an index of one precision that is asked in another: how many of the ten
nearest are the same (`convmae compatible` refuses below 30 dB).
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import faiss
import numpy as np
import tyro
from numpy.typing import NDArray
from pyarrow import parquet
from rich.console import Console
from rich.table import Table

from convmae_deploy import cli
from convmae_deploy.extraction.origin import METADATA_KEY, Origin
from convmae_deploy.program import run_program

NEAREST = 10
NOISES_DB = (20, 25, 30, 35, 40, 55)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Measures photo search over the features of a bundle."""

    bundle: Annotated[Path, tyro.conf.Positional]
    data: Path  # folder of photos by class
    split: str = "val"  # folder below it


def vectors_of(folder: Path) -> tuple[list[str], dict[str, NDArray[np.float32]]]:
    """Names of photos, and level -> vectors of length 1, (N, D), from shards; of maps the mean over places."""
    table = parquet.read_table(folder)
    origin = Origin.model_validate_json(table.schema.metadata[METADATA_KEY.encode()])
    found = {}
    for name, level in origin.levels.items():
        values = np.stack(table[name].to_numpy()).reshape(len(table), *level.shape)
        found[name] = normalised(values.reshape(*values.shape[:2], -1).mean(axis=2))
    return table["path"].to_pylist(), found


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, D), each of length 1."""
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def nearest(index: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rows of the index nearest to each query but for the query itself, (N, 10), by the cosine."""
    flat = faiss.IndexFlatIP(index.shape[1])
    flat.add(index)
    _, rows = flat.search(queries, NEAREST + 1)
    others = rows != np.arange(len(rows))[:, None]
    others[others.all(axis=1), -1] = False  # where noise pushed the photo itself out
    return np.asarray(rows[others].reshape(len(rows), NEAREST))


def precision(classes: NDArray[np.str_], rows: NDArray[np.int64]) -> float:
    """The share of neighbours of the same class."""
    return float((classes[rows] == classes[:, None]).mean())


def main() -> None:
    """The command."""
    config = tyro.cli(SearchConfig, prog="python -m benchmarks.photo_search", description=SearchConfig.__doc__)
    with tempfile.TemporaryDirectory() as folder:
        levels = ("pooled", "e1", "e2", "e3", "e4")
        arguments = ["features", str(config.bundle), str(config.data / config.split), "--out", f"{folder}/out"]
        try:
            cli.main([*arguments, "--levels", *levels])
        except SystemExit as ended:
            if ended.code:
                raise
        names, vectors = vectors_of(Path(folder, "out"))
    classes = np.array([Path(name).parent.name for name in names])
    table = Table("level", "vector", f"precision@{NEAREST}", "in f16")
    for level, each in vectors.items():
        halves = normalised(each.astype(np.float16).astype(np.float32))
        scores = (f"{precision(classes, nearest(index, index)):.3f}" for index in (each, halves))
        table.add_row(level, str(each.shape[1]), *scores)
    noisy = Table("noise below pooled", "the same ten", f"precision@{NEAREST}")
    pooled, generator = vectors["pooled"], np.random.default_rng(0)
    best = nearest(pooled, pooled)
    for decibels in NOISES_DB:
        noise = normalised(generator.standard_normal(pooled.shape).astype(np.float32)) * 10 ** (-decibels / 20)
        rows = nearest(normalised(pooled + noise), pooled)
        same = np.mean([len(set(one) & set(other)) / NEAREST for one, other in zip(best, rows, strict=True)])
        noisy.add_row(f"{decibels} dB", f"{100 * same:.1f} %", f"{precision(classes, rows):.3f}")
    console = Console()
    console.print(f"{len(names)} photos of {len(set(classes))} classes", highlight=False)
    for each_table in (table, noisy):
        console.print(each_table)


if __name__ == "__main__":
    run_program(main)
