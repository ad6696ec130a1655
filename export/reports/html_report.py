"""A verification as one page for those who decide on a deployment: HTML with its style and plots inside, no script."""

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import numpy as np

from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.machine import available_cores, processor
from convmae_deploy.tasks import task_of
from export.reports.html_parts import bullets, facts, figure, group, number, paragraph, row, sentence, table, text
from export.reports.outcomes import counted, not_run, task_cells, verdict, worst_excess, worst_snr
from export.reports.svg_plots import Series, key, layer_plot, scatter_plot
from export.runtimes.combinations import TITLES
from export.tool_versions import tool_versions
from export.verification.gates import GATES
from export.verification.task_metrics import allowed_differences, task_gate
from export.verification.verify_runs import Outcome, Results

STYLE = Path(__file__).with_name("report.css")
CHANGES = 5  # of a class into another, told of each run at most
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")  # their places are their colours


def html_report(results: Results, command: Sequence[str]) -> str:
    """The page."""
    sections = [
        _head(results),
        _compared(results),
        _matrix(results),
        _task(results),
        _changes(results),
        _layers(results),
        _agreement(results),
        _sizes(results),
        _outputs(results),
        _made(results, command),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Verification of {escape(results.bundle.manifest.name)}</title>"
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head>\n"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _head(results: Results) -> str:
    problems = results.problems
    when = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    return (
        paragraph(f"Verification report · {when}", "eyebrow")
        + f"<h1>{escape(results.bundle.manifest.name)}</h1>"
        + paragraph(verdict(results), f"verdict {'bad' if problems else 'good'}")
        + (f'<div class="problems">{bullets([sentence(problem) for problem in problems])}</div>' if problems else "")
        + "".join(paragraph(sentence(note)) for note in results.notes)
    )


def _compared(results: Results) -> str:
    manifest, data = results.bundle.manifest, results.data
    inputs = next((outcome.report.inputs for outcome in results.run if outcome.report is not None), ())
    size = " × ".join(str(side) for side in manifest.input.shape[1:])
    entries = {
        "Model": f"{manifest.variant}, {manifest.task}, input {size}, {len(manifest.classes)} classes",
        "Reference": results.reference.title,
        "Inputs of the graphs": "; ".join(inputs),
    }
    if data is not None:
        entries["Your data"] = f"{len(data.files)} {data.kind} {'with' if data.labelled else 'without'} labels"
    return f"<h2>What was compared with what</h2>{facts(entries)}"


def _matrix(results: Results) -> str:
    """Files down, runtimes across."""
    own = results.reference.short != "PyTorch"  # then the reference is one of the cells
    cells = {(outcome.combination.file, outcome.combination.where): outcome for outcome in results.outcomes}
    run = [outcome.combination.where for outcome in results.outcomes if outcome.combination.reason is None]
    shown = list(dict.fromkeys([*([TITLES["onnxruntime"]] if own else []), *run]))
    rows = []
    files = dict.fromkeys(outcome.combination.file for outcome in results.outcomes)
    for file in files:
        found = [_cell(cells.get((file, where))) for where in shown]
        if own and file == results.bundle.default_file:
            found[0] = text("is the reference", "reason")
        rows.append(row(file, found))
    caption = (
        "SNR: the lowest signal-to-noise ratio of an output on any input. Gate: the largest error as a share of what "
        "the precision may be off by; over 100 % fails."
    )
    absent = [f"{what}: {reason}." for what, reason in not_run(results)]
    return f"<h2>Files and runtimes</h2>{table(['File', *shown], rows, caption=caption)}" + (
        f"{paragraph('Not run here:', 'soft')}{bullets(absent)}" if absent else ""
    )


def _cell(outcome: Outcome | None) -> str:
    if outcome is None or outcome.combination.reason is not None:
        return text("not run", "reason")
    snr, excess, precision = worst_snr(outcome), worst_excess(outcome), outcome.combination.gate
    state = '<b class="good">✓ holds</b>' if outcome.passed else '<b class="bad">✗ fails</b>'
    told = [] if snr is None else [f"SNR {snr:.0f} dB"]
    told.append("gate: the task's metric" if precision == "int8" else f"{100 * excess:.3g} % of {precision} gate")
    return f"<td>{state}{''.join(f'<small>{escape(line)}</small>' for line in told)}</td>"


def _task(results: Results) -> str:
    before, data = results.reference_task, results.data
    if before is None or data is None:
        return ""
    heads = ["File", "Runtime"]
    first = [text("the reference")]
    for metric in before.metrics:
        heads += [metric.name, "change"]
        first += [number(f"{metric.value:.2f} %"), number("")]
    heads += ["agrees on", "allowed"]
    rows = [row(results.reference.short, [*first, number(""), number("")])]
    agreed = ""
    for outcome in results.run:
        if outcome.task is None or outcome.task.agreement is None:
            continue
        agreed = outcome.task.agreement.counted
        cells = [number(cell) for cell in task_cells(outcome.task, before)]
        runtime = text(outcome.combination.where)
        rows.append(row(outcome.combination.file, [runtime, *cells, number(_allowed(results, outcome))]))
    samples = next((metric.samples for metric in before.metrics), len(data.files))
    caption = (
        f"{samples} {data.kind}, each file as it is served, with the bundle's preprocessing. Agreement with the "
        f"reference is counted on {agreed}."
    )
    return f"<h2>On your own {data.kind}</h2>{table(heads, rows, numbers=range(2, len(heads)), caption=caption)}"


def _allowed(results: Results, outcome: Outcome) -> str:
    """What the gates of the task allow a run."""
    assert outcome.task is not None and outcome.task.agreement is not None
    labelled = bool(outcome.task.metrics)
    combination, agreement = outcome.combination, outcome.task.agreement
    gate = task_gate(combination.gate, results.bundle.manifest.files.get(combination.file))
    told = [f"{'±' if gate.both_ways else '−'}{gate.loss:g} points"] if labelled else []
    if gate.differing < 1 and (not labelled or agreement.by_chance == 0):
        told.append(f"{allowed_differences(gate, agreement):,} differing")
    return ", ".join(told)


def _changes(results: Results) -> str:
    """Which classes became which others, of the runs where any did."""
    classes, data = results.bundle.manifest.classes, results.data
    rows = []
    for outcome in results.run:
        changes = {} if outcome.task is None else outcome.task.changes
        if not changes:
            continue
        most = sorted(changes.items(), key=lambda item: -item[1])[:CHANGES]
        told = ", ".join(f"{classes[old]} → {classes[new]} ({count:,})" for (old, new), count in most)
        cells = [
            text(outcome.combination.where),
            number(f"{sum(changes.values()):,}"),
            text(told + (" …" if len(changes) > CHANGES else "")),
        ]
        rows.append(row(outcome.combination.file, cells))
    if not rows or data is None:
        return ""
    unit = data.changing
    heads = ["File", "Runtime", unit, "Reference → file, the most frequent first"]
    return f"<h3>Where the answer changed, near ties included</h3>{table(heads, rows, numbers=[2])}"


def _layers(results: Results) -> str:
    series = [
        Series(
            label=file,
            colour=PRECISIONS.index(errors.precision),
            modules=errors.modules,
            gate_db=_gate_db(errors.precision),
        )
        for file, errors in results.layers.items()
        if errors.modules
    ]
    if not series:
        return ""
    built_up = figure(
        layer_plot(series, own=False),
        "Built up: the error that has come together by the end of each layer. Dashed: what the gate of each precision "
        "asks of the outputs.",
        wide=True,
    )
    own = figure(
        layer_plot(series, own=True),
        "Own: the error that each layer adds by itself when it is given exact inputs; layers without a mark are exact. "
        "A damaged layer stands out below the others.",
        wide=True,
    )
    about = (
        "Each file of reduced precision against the fp32 graph, at the end of every layer, on one picture. A higher "
        "ratio is a smaller error: 20 dB is a tenth of the signal, 40 dB a hundredth, 60 dB a thousandth."
    )
    most = bullets([f"{file}: {errors.explanation}." for file, errors in results.layers.items()])
    return (
        f"<h2>Where precision is lost</h2>{paragraph(about)}{key(series)}{built_up}{own}"
        f"{paragraph('The layer that adds most, file by file:')}{most}"
    )


def _gate_db(precision: Precision) -> float | None:
    limit = GATES[precision].snr_db
    return limit if np.isfinite(limit) else None


def _agreement(results: Results) -> str:
    what = task_of(results.bundle.manifest).KEY_WORDS
    figures = []
    for outcome in results.run:
        if outcome.scatter is None:
            continue
        expected, found = (values.astype(np.float64) for values in outcome.scatter)
        rms = float(np.sqrt(np.mean((expected - found) ** 2)))
        share = rms / (float(np.sqrt(np.mean(expected**2))) or 1.0)
        combination = outcome.combination
        plot = scatter_plot(*outcome.scatter, PRECISIONS.index(combination.gate))
        caption = f"{combination.where}: off by {rms:.2g} on average, {100 * share:.2g} % of the signal (RMS)"
        figures.append(figure(plot, caption, title=combination.file))
    if not figures:
        return ""
    about = f"{what} of a few pictures: the reference across, the file up. On the diagonal they are equal."
    return f'<h2>Agreement</h2>{paragraph(about)}<div class="grid">{"".join(figures)}</div>'


def _sizes(results: Results) -> str:
    files = results.bundle.manifest.files
    largest, first = max(file.bytes for file in files.values()), files[results.bundle.default_file].bytes
    rows = [
        row(
            name,
            [
                text(file.precision),
                number(f"{file.bytes / 1e6:,.1f} MB"),
                number(f"{100 * file.bytes / first:.0f} %"),
                f'<td class="bars"><span class="bar" style="width:{100 * file.bytes / largest:.1f}%"></span></td>',
            ],
        )
        for name, file in files.items()
    ]
    return f"<h2>Sizes</h2>{table(['File', 'Precision', 'Size', 'of fp32', ''], rows, numbers=[2, 3])}"


def _outputs(results: Results) -> str:
    heads = ["Output", "max |Δ|", "relative", "SNR dB", "cosine", "top-1", "of gate", "worst on", ""]
    rows: list[str] = []
    gates: dict[str, str] = {}
    for outcome in results.run:
        assert outcome.report is not None
        precision = outcome.combination.gate
        gates[precision] = outcome.report.tolerance
        rows.append(group(outcome.combination.file, f"in {outcome.runtime}, {precision} gate", len(heads)))
        for name, numerics in outcome.report.outputs.items():
            numbers = (
                f"{numerics.max_abs:.2e}",
                f"{numerics.max_rel:.1e}",
                "" if numerics.snr_db is None else f"{numerics.snr_db:.1f}",
                f"{numerics.cosine:.6f}",
                "" if numerics.top1_agreement is None else f"{numerics.top1_agreement:.2%}",
                f"{100 * numerics.excess:.3g} %",
            )
            state = text("holds", "good") if numerics.passed else '<td class="bad"><b>fails</b></td>'
            rows.append(row(name, [*(number(cell) for cell in numbers), text(numerics.worst_input), state]))
    return f"<h2>Every output</h2>{table(heads, rows, numbers=range(1, 7))}<h3>Gates</h3>{facts(gates)}"


def _made(results: Results, command: Sequence[str]) -> str:
    manifest = results.bundle.manifest
    entries = {
        "Runtimes": "; ".join(dict.fromkeys(outcome.runtime for outcome in results.run)) or "none",
        "Machine": f"{processor()}, {counted(available_cores(), 'core')}",
        "Verified with": _listed(tool_versions()),
        "Exported with": _listed(manifest.tools),
        "Provenance": "; ".join(f"{name}: {told}" for name, told in manifest.provenance.items()) or "unknown",
        "Licence of the weights": manifest.licence.name,
    }
    hashes = {name: file.sha256 for name, file in manifest.files.items()}
    return (
        f"<h2>How this was made</h2><pre>{escape(shlex.join(command))}</pre>{facts(entries)}"
        f"<h3>Files by their SHA-256</h3>{facts(hashes, code=True)}"
    )


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {release}" for name, release in versions.items())
