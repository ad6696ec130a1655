"""What `convmae features` and `convmae compatible` do, from what was typed to what is said."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from convmae_deploy.backends.runtimes import RuntimeOptions
from convmae_deploy.bundle.manifest import MANIFEST_NAME
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction import stores
from convmae_deploy.extraction.cluster import NO_RAY, RayOptions, run_on_ray
from convmae_deploy.extraction.feature_files import SUFFIXES, check_feature_path, origin_in_file, write_features
from convmae_deploy.extraction.job import ModelSpec, Part, ShardMaker, prepare_job, shard_rows_of
from convmae_deploy.extraction.origin import Origin, feature_levels, origin_of
from convmae_deploy.extraction.outputs import open_output
from convmae_deploy.extraction.pieces import Piece
from convmae_deploy.extraction.shards import JOB_NAME, Written, folder_origin
from convmae_deploy.extraction.sources import Plan, make_plan
from convmae_deploy.extraction.stream import Failure, Rows
from convmae_deploy.files import shortened
from convmae_deploy.folders import PassedOver
from convmae_deploy.media.photo_files import IMAGE_SUFFIXES
from convmae_deploy.media.video_file import import_av
from convmae_deploy.media.video_formats import VIDEO_SUFFIXES
from convmae_deploy.printing import counted, printable
from convmae_deploy.program import SOME_INPUTS_BAD
from convmae_deploy.tasks import load_bundle
from convmae_deploy.tasks.base import MediumName
from convmae_deploy.tasks.features import FeaturePredictor
from convmae_deploy.terminal import Terminal

MEDIA_SUFFIXES: dict[MediumName, frozenset[str]] = {"photo": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES}
_SHOWN_FAILURES = 20  # the others are in the files beside the shards alone
_ONE_SHARD = 2**62  # rows


class _Strict(Exception):
    """A file cannot be read, and the user wants to end with it."""


@dataclass(frozen=True, kw_only=True)
class FeatureRequest:
    """What a user asks of `convmae features`, see there."""

    model: ModelSpec
    sources: Sequence[str]
    out: str
    shard_rows: int | None
    part: Part | None
    column: str | None
    strict: bool
    retry_failures: bool
    ray: RayOptions

    def check(self, file: Path | None) -> None:
        """Refuses what cannot be asked together.

        Args:
            file: that is to be written; None: it is a folder of shards.

        Raises:
            ConvMAEError: there is something.
        """
        of_shards = (self.part, self.ray.ray, self.shard_rows)
        if file is not None and (self.retry_failures or any(option is not None for option in of_shards)):
            raise ConvMAEError(f"shards and Ray need a folder to write to; {file} is one file, give a folder")
        if self.ray.ray is None and self.ray != NO_RAY:
            raise ConvMAEError("--ray-actors, --ray-cpus and --ray-gpus are of --ray; give it, or leave them out")
        if self.ray.ray is not None and self.strict:
            raise ConvMAEError(
                "--strict ends with the first bad file, which actors do not share; leave it or --ray out"
            )
        if self.shard_rows is not None and self.shard_rows < 1:
            raise ConvMAEError(f"shard rows must be at least 1; got {self.shard_rows}")
        if not self.sources:
            raise ConvMAEError("expected at least one photo, video, folder or other source after the bundle; got none")


def write_features_of(request: FeatureRequest, spell: Callable[[str], str | None]) -> int:
    """Writes features of all that the sources name, and says what it does; see `convmae features`.

    Args:
        request: what is asked for.
        spell: how the user writes the name of an option.

    Returns:
        The exit status.

    Raises:
        ConvMAEError: something cannot be done as it is asked for.
    """
    file = _single_file(request.out)
    request.check(file)
    request = replace(request, model=request.model.settled())
    model = request.model
    predictor = model.open()
    predictor.check_options(model.options, spell=spell)
    if predictor.MEDIUM == "video":
        import_av()
    with model.stream(predictor, remote=False):  # refuses levels and batch sizes before the sources are searched
        origin = model.origin()
    rows = _ONE_SHARD if file is not None else request.shard_rows or shard_rows_of(origin)
    suffixes, kind = sorted(MEDIA_SUFFIXES[predictor.MEDIUM]), f"{predictor.MEDIUM}s"
    plan = make_plan(request.sources, suffixes, kind, shard_rows=rows, column=request.column)
    try:
        if file is not None:
            return _write_file(request, predictor, plan, file, origin)
        if plan.passed_over:
            print(f"passed over: {plan.passed_over}", file=sys.stderr)
        return _write_shards(request, predictor, plan)
    except _Strict:
        return SOME_INPUTS_BAD
    finally:
        plan.close()


def _single_file(out: str) -> Path | None:
    """The file to write; None where it is a folder: what has no suffix, ends in a slash, or is there as one."""
    if not out:
        raise ConvMAEError("expected a folder or a file after --out; got nothing")
    path = stores.local_path(out)
    if stores.is_remote(out) or out.endswith("/") or not path.suffix or (path.is_dir() and path.suffix not in SUFFIXES):
        return None
    check_feature_path(path)
    return path


def _write_file(request: FeatureRequest, predictor: FeaturePredictor, plan: Plan, file: Path, origin: Origin) -> int:
    seen = _Seen(request.strict, shown=None)  # nothing else says what was left out
    total, kind = _counting(request.model, predictor, plan.rows(range(plan.shards)))
    with request.model.stream(predictor, remote=plan.is_remote) as stream, _progress(kind, total) as advance:

        def parts() -> Iterator[Rows]:
            for _, rows in stream.run((index, plan.piece(index)) for index in range(plan.shards)):
                if rows is not None:
                    seen(rows)
                    advance(len(rows.names) + len(rows.failures))
                    yield rows

        count = write_features(file, origin, parts())
    plan.passed_over.merge([piece.passed_over for piece in plan.containers])
    if plan.passed_over:
        print(f"passed over: {plan.passed_over}", file=sys.stderr)
    left_out = f"; {seen.failures} left out" if seen.failures else ""
    shapes = ", ".join(f"{name} {(count, *level.shape)}" for name, level in origin.levels.items())
    print(f"{printable(file)}: {count} {kind}{left_out}; {shapes}")
    return 0


def _write_shards(request: FeatureRequest, predictor: FeaturePredictor, plan: Plan) -> int:
    maker, left, kept = prepare_job(
        request.model, plan, request.out, request.part or Part(), retry_failures=request.retry_failures
    )
    seen, rows, failures = _Seen(request.strict), 0, 0
    expected, kind = _counting(request.model, predictor, plan.rows(left))
    begun, passed_over = time.monotonic(), PassedOver()
    with _progress(kind, expected) as advance:

        def on_rows(rows: Rows) -> None:
            seen(rows)
            advance(len(rows.names) + len(rows.failures))

        pieces = ((index, plan.piece(index)) for index in left)
        if request.ray.ray is None:
            done = _here(maker, predictor, pieces, on_rows)
        else:
            done = _seen_from_afar(run_on_ray(maker, list(pieces), request.ray), seen, advance)
        for index, written in done:
            rows, failures = rows + written.rows, failures + written.failures
            passed_over.merge([written.passed_over])
            if not sys.stderr.isatty():
                rate = (rows + failures) / max(time.monotonic() - begun, 1e-9)
                print(f"{maker.job.shard_name(index)}: {_words(written, kind)}; {rate:.1f} a second", file=sys.stderr)
    total = Written(rows=rows, failures=failures, first=None)
    already = f", {len(kept.done)} were there already" if kept.done else ""
    out = printable(request.out)
    print(f"{out}: {counted(len(left), 'shard')} written{already}; {_words(total, kind)}")
    if passed_over:
        print(f"passed over: {passed_over}", file=sys.stderr)
    if kept.failures:
        print(
            f"{counted(len(kept.failures), 'shard')} of those that were there lack files that could not be read",
            file=sys.stderr,
        )
    if failures or kept.failures:
        print(f"why: _failures-*.jsonl in {out}; --retry-failures reads these shards again", file=sys.stderr)
    return SOME_INPUTS_BAD if (failures and not rows) or (request.strict and kept.failures) else 0


def _counting(model: ModelSpec, predictor: FeaturePredictor, files: int | None) -> tuple[int | None, str]:
    """How many rows there will be, None where nobody knows, and what they are of."""
    return (files, f"{predictor.MEDIUM}s") if model.tiles is None else (None, "tiles")


def _here(
    maker: ShardMaker,
    predictor: FeaturePredictor,
    pieces: Iterable[tuple[int, Piece]],
    on_rows: Callable[[Rows], None],
) -> Iterator[tuple[int, Written]]:
    opened = maker.open(predictor)
    with opened.stream:
        yield from opened.run(pieces, on_rows)


def _seen_from_afar(
    done: Iterable[tuple[int, Written]], seen: "_Seen", advance: Callable[[int], None]
) -> Iterator[tuple[int, Written]]:
    """Of shards that others make, the first failure of each is all that comes here."""
    for index, written in done:
        advance(written.rows + written.failures)
        if written.first is not None:
            seen.report(written.first)
        yield index, written


class _Seen:
    """Reports the first files that cannot be read, and ends the work with the first of all where that is wanted."""

    def __init__(self, strict: bool, shown: int | None = _SHOWN_FAILURES) -> None:
        self.failures, self._strict, self._shown = 0, strict, shown

    def __call__(self, rows: Rows) -> None:
        for failure in rows.failures:
            self.report(failure)

    def report(self, failure: Failure) -> None:
        """One file."""
        self.failures += 1
        if self._shown is None or self.failures <= self._shown:
            print(f"error: {printable(failure.name)}: {printable(failure.error)}", file=sys.stderr)
        elif self.failures == self._shown + 1:
            print("error: more files cannot be read, which are not shown here", file=sys.stderr)
        if self._strict:
            raise _Strict


def _words(written: Written, kind: str) -> str:
    return counted(written.rows, kind.removesuffix("s")) + (
        f", {written.failures} left out" if written.failures else ""
    )


@contextmanager
def _progress(kind: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; without one, the shards say how far the work is."""
    console = Terminal(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(kind, total=total)
        yield lambda count: progress.advance(bar, count)


def read_origin(name: str) -> Origin:
    """What vectors are made by: those of a bundle, of a graph in one, of a file or a folder of features.

    Args:
        name: a path; of a folder of shards a URI too.

    Raises:
        ConvMAEError: it is none of these.
    """
    path = stores.local_path(name)
    if stores.is_remote(name) or (path / JOB_NAME).is_file():
        return folder_origin(open_output(name), name)
    if path.suffix in SUFFIXES:
        found = origin_in_file(path)
        if found is None:
            raise ConvMAEError(
                f"{shortened(name)} does not say what its vectors were made by; give what convmae features wrote"
            )
        return found
    if not (path / MANIFEST_NAME).is_file() and path.suffix not in (".onnx", ".engine"):
        raise ConvMAEError(
            f"expected a bundle, a graph in one, or what convmae features wrote (a folder with its {JOB_NAME}, or a "
            f"file); got {shortened(name)}"
        )
    bundle = load_bundle(path.parent if path.is_file() else path)
    levels = feature_levels(bundle)
    return origin_of(bundle, levels, runtime=RuntimeOptions(file=path.name if path.is_file() else None))
