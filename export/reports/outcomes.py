"""The outcome of a verification in words and in the terminal's tables."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from convmae_deploy.bundle.numerics import NumericsReport
from convmae_deploy.printing import counted
from export.runtimes.combinations import Combination
from export.verification.task_metrics import allowed_differences, task_gate
from export.verification.verify_runs import Outcome, Results, TaskOutcome


def verdict(results: Results) -> str:
    """One sentence: does all of it hold?"""
    run = results.run
    files = len({outcome.combination.file for outcome in run})
    runtimes = len({outcome.combination.where for outcome in run})
    what = f"{counted(files, 'file')} on {counted(runtimes, 'runtime')}"
    against = f"against {results.reference.short}"
    tried = [outcome for outcome in results.outcomes if outcome.combination.reason is None]
    failed = [outcome for outcome in tried if not outcome.passed]
    if results.manifest_problems and not failed:
        return f"The manifest is wrong, though the numbers of {what} hold {against}."
    if failed:
        also = ", and the manifest is wrong" if results.manifest_problems else ""
        return f"{len(failed)} of {counted(len(tried), 'run')} {'does' if len(failed) == 1 else 'do'} not hold{also}."
    if not run:
        return f"Nothing was held {against}: there is no other file or runtime here."
    return f"All holds: {what}, {counted(len(run), 'run')}, {against}."


def worst_snr(outcome: Outcome) -> float | None:
    """The lowest signal-to-noise ratio of all outputs in decibels; None where none was measured."""
    if outcome.report is None:
        return None
    return min((row.snr_db for row in outcome.report.outputs.values() if row.snr_db is not None), default=None)


def worst_excess(outcome: Outcome) -> float:
    """The largest error of an output as a share of what its gate allows; 0 where it was not run."""
    return max((row.excess for row in outcome.report.outputs.values()), default=0.0) if outcome.report else 0.0


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Text in rows, of which the first cell says what it is of."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Collection[int]  # places of the columns that hold numbers
    caption: str = ""


def task_rows(results: Results) -> Rows | None:
    """What each run makes of the user's data: the metrics, their changes, the agreement, and what is allowed."""
    before, data = results.reference_task, results.data
    if before is None or data is None:
        return None
    heads = ["File", "Runtime", *(head for metric in before.metrics for head in (metric.name, "change"))]
    first = [cell for metric in before.metrics for cell in (f"{metric.value:.2f} %", "")]
    rows = [[results.reference.short, "the reference", *first, "", ""]]
    agreed = ""
    for run in results.run:
        if run.task is not None and run.task.agreement is not None:
            agreement = run.task.agreement
            agreed = agreement.counted
            pairs = zip(before.metrics, run.task.metrics, strict=True)
            cells = [cell for a, b in pairs for cell in (f"{b.value:.2f} %", f"{b.value - a.value:+.2f}")]
            cells += [f"{agreement.agreeing} of {agreement.decided}", _allowed(results, run.combination, run.task)]
            rows.append([run.combination.file, run.combination.where, *cells])
    samples = next((metric.samples for metric in before.metrics), len(data.files))
    caption = f"on {samples} {data.kind}; agreement on {agreed}"
    heads += ["agrees on", "allowed"]
    return Rows(heads=heads, rows=rows, numbers=range(2, len(heads)), caption=caption)


def _allowed(results: Results, combination: Combination, outcome: TaskOutcome) -> str:
    """What the gates of the task allow a run."""
    assert outcome.agreement is not None
    gate = task_gate(combination.gate, results.bundle.manifest.files.get(combination.file))
    limits = [f"{'±' if gate.two_sided else '−'}{gate.loss:g} points"] if outcome.metrics else []
    if gate.differing < 1 and (not outcome.metrics or outcome.agreement.by_chance == 0):
        limits.append(f"{allowed_differences(gate, outcome.agreement):,} differing")
    return ", ".join(limits)


def not_run(results: Results) -> list[tuple[str, str]]:
    """What could not be run, and why; a runtime that runs none of the files is listed once."""
    left_out = []
    for where in dict.fromkeys(outcome.combination.where for outcome in results.outcomes):
        skipped = [outcome for outcome in results.outcomes if outcome.combination.where == where]
        reasons = [(outcome.combination, outcome.combination.reason) for outcome in skipped]
        if skipped and all(reason is not None for _, reason in reasons):
            left_out.append((where, str(reasons[0][1])))
        else:
            left_out += [(combination.title, reason) for combination, reason in reasons if reason is not None]
    return left_out


def print_report(report: NumericsReport, console: Console, *, details: bool = True) -> None:
    """The table of a report, and with `details` its inputs and its gate."""
    table = Table(box=box.SIMPLE, padding=0)
    table.add_column("output", no_wrap=True)
    for heading in ("max abs", "max rel", "SNR dB", "cosine", "top-1", "/ gate"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("worst on")
    table.add_column("")
    for name, row in report.outputs.items():
        table.add_row(
            name,
            f"{row.max_abs:.2e}",
            f"{row.max_rel:.2e}",
            "" if row.snr_db is None else f"{row.snr_db:.1f}",
            f"{row.cosine:.7f}",
            "" if row.top1_agreement is None else f"{row.top1_agreement:.1%}",
            f"{row.excess:.3g}",
            row.worst_input,
            "passed" if row.passed else Text("failed", style="bold red"),
        )
    console.print(f"{report.runtime} against {report.reference}", highlight=False)
    console.print(table)
    if not details:
        return
    console.print(f"Inputs: {'; '.join(report.inputs)}.", highlight=False)
    console.print(f"Gate: {report.tolerance}.", highlight=False)


def print_outcomes(results: Results, console: Console) -> None:
    """The table of each run, then all runs, then the task, then what must be known besides."""
    for outcome in results.run:
        assert outcome.report is not None
        console.print(outcome.combination.title, style="bold", highlight=False)
        print_report(outcome.report, console, details=False)
    reports = {outcome.combination.gate: outcome.report for outcome in results.run if outcome.report is not None}
    for precision, report in reports.items():
        console.print(f"Gate of {precision}: {report.tolerance}.", highlight=False)
    for inputs in dict.fromkeys(report.inputs for report in reports.values()):
        console.print(f"Inputs: {'; '.join(inputs)}.", highlight=False)
    console.print(_summary(results))
    if results.reference_task is not None and results.data is not None:
        console.print(_task_table(results))
    for what, reason in not_run(results):
        console.print(f"Not run: {what}: {reason}.", highlight=False)
    for note in results.notes:
        console.print(f"Note: {note}.", highlight=False)
    console.print(verdict(results), highlight=False, style="bold")


def _summary(results: Results) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("file", "runtime", "gate", "SNR dB", "/ gate", ""):
        table.add_column(heading, justify="right" if heading in ("SNR dB", "/ gate") else "left")
    for outcome in results.outcomes:
        combination, snr = outcome.combination, worst_snr(outcome)
        if combination.reason is None:
            table.add_row(
                combination.file,
                combination.where,
                combination.gate,
                "" if snr is None else f"{snr:.1f}",
                f"{worst_excess(outcome):.3g}",
                "holds" if outcome.passed else Text("fails", style="bold red"),
            )
    return table


def _task_table(results: Results) -> Table:
    made = task_rows(results)
    assert made is not None
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), caption=made.caption)
    for place, head in enumerate(made.heads[:-1]):  # what is allowed is for the page
        table.add_column(head.lower() if place < 2 else head, justify="right" if place in made.numbers else "left")
    for row in made.rows:
        table.add_row(*row[:-1])
    return table
