import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction.origin import Origin
from convmae_deploy.extraction.outputs import open_output
from convmae_deploy.extraction.shards import Found, Job, begin, folder_origin, shard_job, write_shard
from convmae_deploy.extraction.stream import Failure, Rows
from tests.extraction.test_origin import origin
from tests.waiting import PATIENCE_SECONDS

SHAPES = {"pooled": (8,), "e1": (2, 3, 4)}


def job(**changes: Any) -> Job:
    one = origin(dtype=changes.pop("dtype", "f32"))
    levels = {name: one.levels["pooled"].model_copy(update={"shape": shape}) for name, shape in SHAPES.items()}
    facts: dict[str, Any] = {"origin": one.model_copy(update={"levels": levels}), "sources_sha256": "s" * 64}
    facts |= {"computed_by": "onnxruntime on cpu", "files": 250}
    return Job(**{**facts, "shard_rows": 100, "shards": 3, **changes})


def rows(count: int, *, start: int = 0, bad: Sequence[str] = (), dtype: str = "float32") -> Rows:
    generator = np.random.default_rng(start)
    features = {name: generator.standard_normal((count, *shape)).astype(dtype) for name, shape in SHAPES.items()}
    names = [f"{start + index}.jpg" for index in range(count)]
    return Rows(names=names, features=features, failures=[Failure(name, "it is broken") for name in bad])


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_a_shard_holds_names_and_lists_of_fixed_size_and_says_what_made_it(tmp_path: Path, dtype: str) -> None:
    number = {"f32": "float32", "f16": "float16"}[dtype]
    parts = [rows(3, dtype=number), rows(2, start=3, bad=["x\udcff.jpg"], dtype=number)]
    written = write_shard(open_output(str(tmp_path)), job(dtype=dtype), 1, parts)
    assert (written.rows, written.failures, written.first) == (5, 1, Failure("x\udcff.jpg", "it is broken"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "_failures-00001-of-00003.jsonl",
        "features-00001-of-00003.parquet",
    ]
    line = (tmp_path / "_failures-00001-of-00003.jsonl").read_text()
    assert json.loads(line) == {"path": "x\ufffd.jpg", "error": "it is broken"}
    table = parquet.read_table(tmp_path)  # a reader of folders passes over the failures
    assert table["path"].to_pylist() == [f"{index}.jpg" for index in range(5)]
    for name, shape in SHAPES.items():
        kind = table.schema.field(name).type
        assert pyarrow.types.is_fixed_size_list(kind) and kind.list_size == np.prod(shape)
        assert json.loads(table.schema.field(name).metadata[b"shape"]) == list(shape)
        found = np.stack(table[name].to_numpy()).reshape(5, *shape)
        assert found.dtype == number
        assert np.array_equal(found, np.concatenate([part.features[name] for part in parts]))
    assert Origin.model_validate_json(table.schema.metadata[b"convmae_deploy"]) == job(dtype=dtype).origin


def test_rows_lie_in_groups_that_a_reader_holds_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = open_output(str(tmp_path))
    write_shard(output, job(), 0, [rows(700), rows(700, start=700), rows(1000, start=1400)])
    file = parquet.ParquetFile(tmp_path / "features-00000-of-00003.parquet")
    assert [file.metadata.row_group(index).num_rows for index in range(3)] == [1024, 1024, 352]
    assert file.read()["path"].to_pylist() == [f"{index}.jpg" for index in range(2400)]
    monkeypatch.setattr("convmae_deploy.extraction.shards._GROUP_BYTES", 4 * (8 + 24) * 10)
    write_shard(output, job(), 1, [rows(25)])
    file = parquet.ParquetFile(tmp_path / "features-00001-of-00003.parquet")
    assert [file.metadata.row_group(index).num_rows for index in range(3)] == [10, 10, 5]


def test_the_same_rows_make_the_same_bytes_however_they_come(tmp_path: Path) -> None:
    whole = rows(50)
    halves = [
        Rows(names=whole.names[part], features={name: each[part] for name, each in whole.features.items()}, failures=())
        for part in (slice(0, 17), slice(17, 50))
    ]
    for name, parts in (("a", [whole]), ("b", halves)):
        write_shard(open_output(str(tmp_path / name)), job(), 0, parts)
    first, second = (next((tmp_path / name).iterdir()).read_bytes() for name in ("a", "b"))
    assert first == second


def test_a_shard_without_rows_is_there_all_the_same(tmp_path: Path) -> None:
    written = write_shard(open_output(str(tmp_path)), job(), 2, [])
    assert (written.rows, written.failures) == (0, 0)
    assert parquet.read_table(tmp_path).num_rows == 0


def test_what_ends_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    def parts() -> Iterator[Rows]:
        yield rows(2000, bad=["x.jpg"])
        raise ConvMAEError("the store is gone")

    with pytest.raises(ConvMAEError, match="the store is gone"):
        write_shard(open_output(str(tmp_path)), job(), 0, parts())
    assert list(tmp_path.iterdir()) == []


def test_failures_are_there_before_their_shard_and_stale_ones_go(tmp_path: Path) -> None:
    output = open_output(str(tmp_path))
    begin(output, "out", job())
    published = []
    writing = output.writing

    def recorded(name: str) -> Any:
        published.append(name)
        return writing(name)

    output.writing = recorded  # type: ignore[method-assign]
    write_shard(output, job(), 0, [rows(1, bad=["x.jpg"])])
    assert published == ["features-00000-of-00003.parquet", "_failures-00000-of-00003.jsonl"], (
        "the inner one ends first"
    )
    (tmp_path / "features-00000-of-00003.parquet").unlink()
    assert begin(output, "out", job()) == Found(job())
    write_shard(output, job(), 0, [rows(1)])
    assert not (tmp_path / "_failures-00000-of-00003.jsonl").exists()
    assert begin(output, "out", job()) == Found(job(), frozenset({0}), frozenset())


def test_a_folder_belongs_to_one_job(tmp_path: Path) -> None:
    output = open_output(str(tmp_path / "out"))
    assert begin(output, "out", job()) == Found(job())
    newer = job(origin=job().origin.model_copy(update={"release": "9.9.9"}))
    assert begin(output, "out", newer) == Found(job()), "another release may go on"
    write_shard(output, job(), 0, [])
    levels = {name: level.model_copy(update={"snr_db": 50.0}) for name, level in job().origin.levels.items()}
    again = job(origin=job().origin.model_copy(update={"levels": levels}))
    assert begin(output, "out", again) == Found(job(), frozenset({0})), "the same graph, verified once more"
    changes = (
        (job(dtype="f16"), "dtype f32, now f16"),
        (job(computed_by="openvino on cpu"), "runtime onnxruntime on cpu, now openvino on cpu"),
        (job(shard_rows=50), "shard rows 100, now 50"),
        (job(shards=4), "shards 3, now 4"),
        (
            job(sources_sha256="t" * 64),
            "the sources 250 files of SHA-256 ssssssssssssssss…, now 250 files of SHA-256 tttttttttttttttt…",
        ),
    )
    for changed, words in changes:
        with pytest.raises(ConvMAEError, match=f"'out' holds another job's features .*{words}"):
            begin(output, "out", changed)
    (tmp_path / "out" / "_job.json").write_text("{}")
    with pytest.raises(ConvMAEError, match="_job.json is not what convmae features writes"):
        begin(output, "out", job())


@pytest.mark.slow
def test_of_processes_that_begin_at_once_one_makes_the_job_and_all_go_on(tmp_path: Path) -> None:
    for attempt in range(20):
        out, together = str(tmp_path / str(attempt)), threading.Barrier(4)

        def start(index: int, out: str = out, together: threading.Barrier = together) -> Found:
            output = open_output(out)
            together.wait(PATIENCE_SECONDS)
            found = begin(output, "out", job())
            write_shard(output, job(), 0, [rows(3)])  # all the same one
            return found

        with ThreadPoolExecutor(4) as pool:
            assert [found.job for found in pool.map(start, range(4))] == 4 * [job()]
        assert sorted(os.listdir(out)) == ["_job.json", "features-00000-of-00003.parquet"]


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConvMAEError, match="'out' holds no features but 'thesis.tex'; choose a new or an empty folder"):
        begin(open_output(str(tmp_path)), "out", job())


def test_a_table_of_something_else_among_the_shards_is_refused(tmp_path: Path) -> None:
    output = open_output(str(tmp_path))
    begin(output, "out", job())
    write_shard(output, job(), 0, [rows(1)])
    assert folder_origin(output, "out") == job().origin
    (tmp_path / "features-00000-of-00003.parquet").rename(tmp_path / "other.parquet")
    for read in (lambda: begin(output, "out", job()), lambda: folder_origin(output, "out")):
        with pytest.raises(
            ConvMAEError, match="'out' holds 'other.parquet', which is no shard of its job; move it away"
        ):
            read()


@pytest.mark.parametrize("content", [b"", b"PAR1 no table PAR1", None])
def test_a_shard_of_something_else_is_refused(tmp_path: Path, content: bytes | None) -> None:
    output = open_output(str(tmp_path))
    begin(output, "out", job())
    if content is None:
        write_shard(output, job(dtype="f16"), 1, [])
    else:
        (tmp_path / "features-00001-of-00003.parquet").write_bytes(content)
    with pytest.raises(
        ConvMAEError, match="features-00001-of-00003.parquet is no shard of this job; remove it, and it is"
    ):
        begin(output, "out", job())
    assert content is None or shard_job(output, "features-00001-of-00003.parquet") is None
