"""The choice that a benchmark ends with: the fastest file and runtime among those that hold."""

from collections.abc import Mapping

from convmae_deploy.backends.choice import Choice, Goal, Machine, choice_path, file_sha256
from convmae_deploy.backends.engine_record import ENGINE_SUFFIX, find_engine, read_record
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import INT8, BundleFile
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_file
from export.benchmarking.report import BenchmarkRecord, CombinationRecord, Ranked, ranking
from export.benchmarking.timing import is_significantly_faster
from export.runtimes.combinations import PLACES, TORCH
from export.verification.gates import GATES


def choose(record: BenchmarkRecord, bundle: Bundle, goal: Goal) -> tuple[Choice, dict[str, str]]:
    """The choice, and who was faster or as fast and does not hold: its name, and why.

    Among those within the noise of the fastest it is the first, as they were measured: files in full precision come
    first, and what everyone has.

    Raises:
        ConvMAEError: none holds.
    """
    combinations = {entry.name: entry for entry in record.combinations}
    passed_over: dict[str, str] = {}
    holding: list[Ranked] = []
    for row, timing in ranking(record.rows, goal):
        reason = why_not(combinations[row.combination], bundle)
        if reason is None:
            holding.append((row, timing))
        elif not holding:
            passed_over[row.combination] = reason
    if not holding:
        raise ConvMAEError(f"nothing that was measured holds, so there is nothing to choose: {in_words(passed_over)}")
    fastest, own = holding[0]
    rounds = [milliseconds / fastest.batch_size for milliseconds in own.round_ms]
    near = {
        row.combination: (row, timing)
        for row, timing in holding
        if row is fastest or not is_significantly_faster(rounds, [value / row.batch_size for value in timing.round_ms])
    }
    row, timing = next(near[name] for name in combinations if name in near)
    chosen = combinations[row.combination]
    assert chosen.file is not None  # `why_not` says so
    place = PLACES[chosen.runtime]
    return Choice(
        goal=goal,
        device="cuda" if place.device == "cuda" else "cpu",
        runtime=place.name,
        file=chosen.file,
        file_sha256=file_sha256(bundle, chosen.file),
        precision=chosen.computes_in,
        hint=chosen.hint,
        machine=Machine.this(),
        figures=f"{timing.p50_ms:.4g} ms for a batch of {row.batch_size} at the median, "
        f"{timing.images_per_second:.4g} {record.unit}s/s, {record.threads} threads",
        versions={name: version for name, version in record.machine.items() if name not in _NO_VERSIONS},
    ), passed_over


_NO_VERSIONS = ("device", "threads", "platform", "pinned")  # facts of the machine


def why_not(combination: CombinationRecord, bundle: Bundle) -> str | None:
    """Why a combination may not be chosen, however fast it is; None: it holds.

    A graph that is computed as it is written holds by the export's proof; what nobody proved, by its answers to the
    user's data. Where there are such data, they count for all but INT8, whose proof is the task's metric.
    """
    if combination.runtime in TORCH or combination.file is None:
        return "PyTorch serves no bundle"
    if combination.problem is not None:
        return "it failed"
    numerics = _graph(combination.file, bundle).numerics
    if numerics is None or not numerics.passed:
        return "its graph is not verified"
    is_engine = combination.file.endswith(ENGINE_SUFFIX)
    as_written = not is_engine and combination.computes_in in (None, "fp32", combination.precision)
    computes = combination.precision if as_written or combination.computes_in is None else combination.computes_in
    if combination.agreement is None:
        what = (
            "no engine is proven by the export" if is_engine else f"the file is {combination.precision}, and computed"
        )
        return None if as_written else f"{what}{'' if is_engine else f' in {computes}'}; give --data"
    least = GATES[computes].top1
    if computes not in INT8 and combination.agreement < least:
        return f"it agrees on {combination.agreement:.2%} of the data, and {least:.1%} are needed"
    return None


def _graph(file: str, bundle: Bundle) -> BundleFile:
    """A graph of the bundle, or that which an engine was built from."""
    name = read_record(find_engine(bundle, file)).graph if file.endswith(ENGINE_SUFFIX) else file
    return bundle.graph(name)[1]


def in_words(reasons: Mapping[str, str]) -> str:
    """Who, and why."""
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def write_choice(bundle: Bundle, choice: Choice) -> str:
    """Writes it beside the bundle, in place of an older one, and returns where that is."""
    path = choice_path(bundle.path)
    with atomic_file(path) as temporary:
        temporary.write_text(choice.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return str(path)
