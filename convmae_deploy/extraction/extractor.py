"""Features as a step of somebody else's pipeline: a class for Ray Data's `map_batches`, and for loops of one's own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.backends.base import Device
from convmae_deploy.backends.runtimes import AutoName, RuntimeName, RuntimeOptions
from convmae_deploy.bundle.preprocessing import Size
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction.job import ModelSpec
from convmae_deploy.extraction.pieces import COLUMNS, Item, item_of
from convmae_deploy.extraction.shards import as_table, schema_of
from convmae_deploy.extraction.stream import FeatureStream, FeatureType


class FeatureExtractor:
    """Adds features to batches of photos or videos; it can be pickled, and opens its model where it is first called.

    files = ray.data.read_binary_files("photos/", include_paths=True)
    files.map_batches(
        FeatureExtractor,
        fn_constructor_kwargs={"bundle": "bundles/encoder", "levels": ["pooled"]},
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_size=64,
    ).write_parquet("features/")
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        levels: Sequence[str] = ("pooled",),
        column: str | None = None,
        dtype: FeatureType = "f32",
        batch_size: int | None = None,
        size: Size | None = None,
        device: Device = "auto",
        threads: int | None = None,
        runtime: RuntimeName | AutoName | None = None,
        file: str | None = None,
    ) -> None:
        """
        Args:
            bundle: its folder.
            levels: names of features.
            column: of the batches, with the content of photos or videos, or with their paths or URIs; None: the one
                that is called as such columns are (bytes, image, path, ...).
            dtype: of the features, "f32" or "f16".
            batch_size: photos or videos a run; None: what the bundle allows, at most 32.
            size: (height, width) in pixels of the model's input, for bundles exported for every size; None: the
                bundle's.
            device: "auto" (a GPU that works, else the CPU), "cpu" or "cuda".
            threads: CPU threads of all runs of the model together; None: one a core.
            runtime: what runs the graph; None is ONNX Runtime, "auto" what was chosen for the machine that opens it, as
                of `load`.
            file: which graph of the bundle; None is its first.
        """
        self._model = ModelSpec(
            bundle=Path(bundle),
            levels=(levels,) if isinstance(levels, str) else tuple(levels),
            dtype=dtype,
            batch_size=batch_size,
            size=size,
            device=device,
            threads=threads,
            runtime=RuntimeOptions(runtime=runtime, file=file),
        )
        self._column = column
        self._opened: tuple[FeatureStream, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}

    def __call__(self, batch: Any) -> Any:
        """Features of one batch.

        Args:
            batch: columns by name, each with a value for each row: a dict, or a table of pandas or pyarrow.

        Returns:
            A `pyarrow.Table` with all rows in order: the columns of the batch but the one of contents, a list of fixed
            size for each level, and `error`, which is null where all went well; where it is not, the features are null.

        Raises:
            ConvMAEError: there is no such column, or the model does not open.
        """
        import pyarrow

        if isinstance(batch, pyarrow.RecordBatch):
            batch = pyarrow.Table.from_batches([batch])
        if isinstance(batch, pyarrow.Table):
            columns = dict(zip(batch.column_names, batch.columns, strict=True))
        else:  # a mapping, or a table of pandas
            columns = dict(batch.items())
        column = self._column_of(columns)
        items = [item_of(_plain(value), str(row)) for row, value in enumerate(columns[column])]
        taken = [name for name in (*self._model.levels, "error") if name in columns]
        if taken:
            raise ConvMAEError(f"a batch must not have a column {taken[0]} yet, which would be lost; rename it")
        if any(isinstance(item.content, bytes) for item in items):
            del columns[column]  # contents are large, and nobody needs them any more; paths stay
        stream, schema = self._open()
        rows, features, errors = _run(stream, items)
        found = as_table(schema, [""] * len(rows), features) if rows else schema.empty_table()
        places = np.full(len(items), -1)
        places[rows] = np.arange(len(rows))
        order = pyarrow.array(places, mask=places < 0)  # a null takes a null
        kept = {name: _as_column(values) for name, values in columns.items()}
        levels = {level: found[level].combine_chunks().take(order) for level in stream.levels}
        table = pyarrow.table({**kept, **levels, "error": pyarrow.array(errors, type=pyarrow.string())})
        return table.replace_schema_metadata(schema.metadata)

    def _column_of(self, columns: Mapping[str, Any]) -> str:
        found = next((name for name in COLUMNS if name in columns), None) if self._column is None else self._column
        if found not in columns:
            wanted = self._column or f"one of {', '.join(COLUMNS)}"
            raise ConvMAEError(
                f"expected the column {wanted} in a batch; got {', '.join(columns)}, give its name as column"
            )
        return str(found)

    def _open(self) -> tuple[FeatureStream, Any]:
        if self._opened is None:
            model = self._model.settled()
            self._opened = model.stream(model.open(), remote=False), schema_of(model.origin())
        return self._opened


class _Items:
    """A piece that is in memory."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items

    def items(self) -> Iterator[Item]:
        return iter(self._items)


def _run(stream: FeatureStream, items: Sequence[Item]) -> tuple[list[int], dict[str, NDArray[Any]], list[str | None]]:
    """The rows that could be read, level -> their features, and what is wrong with each row of all."""
    rows: list[int] = []
    parts: list[dict[str, NDArray[Any]]] = []
    errors: list[str | None] = [None] * len(items)
    places = [replace(item, name=str(row)) for row, item in enumerate(items)]
    for _, found in stream.run([(0, _Items(places))]):
        if found is not None:
            rows += map(int, found.names)
            parts += [found.features] if found.names else []
            for failure in found.failures:
                errors[int(failure.name)] = failure.error
    return rows, {level: np.concatenate([part[level] for part in parts]) for level in stream.levels if parts}, errors


def _as_column(values: Any) -> Any:
    """A column of a batch as Arrow has it; one of Arrow stays as it is."""
    import pyarrow

    if isinstance(values, pyarrow.ChunkedArray | pyarrow.Array):
        return values
    try:
        return pyarrow.array(values)
    except pyarrow.ArrowException:  # of objects of several kinds
        return pyarrow.array([_plain(value) for value in values])


def _plain(value: Any) -> Any:
    """A value of NumPy's or Arrow's as Python has it; what is missing in a table of pandas' or Ray's is NaN there."""
    for method in ("as_py", "item"):
        if hasattr(value, method) and not isinstance(value, np.ndarray):
            value = getattr(value, method)()
    return None if isinstance(value, float) and value != value else value
