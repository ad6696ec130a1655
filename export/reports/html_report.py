"""A verification as one page for those who decide on a deployment: HTML with its style and plots inside, no script."""

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from convmae_deploy.bundle.manifest import INT8, Precision
from convmae_deploy.bundle.numerics import OutputNumerics
from convmae_deploy.machine import available_cores, processor
from convmae_deploy.printing import counted
from convmae_deploy.tasks import task_of
from export.reports.outcomes import Rows, not_run, task_rows, verdict, worst_excess, worst_snr
from export.reports.plots import Series, layer_plot, scatter_plot
from export.runtimes.combinations import TITLES
from export.tool_versions import tool_versions
from export.verification.gates import GATES
from export.verification.verify_runs import Outcome, Results

FOLDER = Path(__file__).parent
CHANGES = 5  # changes of a class into another that are listed for each run, at most
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "int8-fp16")  # their places are their colours


def html_report(results: Results, command: Sequence[str]) -> str:
    """The page; whatever text a bundle brings is no markup."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["sentence"] = sentence
    environment.globals |= {
        "cell_lines": cell_lines,
        "layer_plot": layer_plot,
        "numbers_of": numbers_of,
        "verdict": verdict,
    }
    manifest = results.bundle.manifest
    return environment.get_template("page.html").render(
        results=results,
        manifest=manifest,
        data=results.data,
        style=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
        when=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        compared=_compared(results),
        matrix=_matrix(results),
        absent=[f"{what}: {reason}." for what, reason in not_run(results)],
        task=task_rows(results),
        changes=_changes(results),
        layers=_layers(results),
        key_words=task_of(manifest).KEY_WORDS,
        scatters=_scatters(results),
        largest=max(file.bytes for file in manifest.files.values()),
        gates={run.combination.gate: run.report.tolerance for run in results.run if run.report is not None},
        made=_made(results),
        command=shlex.join(command),
    )


def sentence(clause: str) -> str:
    """A clause with a capital, unless it begins with the name of a file, and a full stop."""
    first = clause.split(" ", 1)[0]
    begun = clause if "." in first else f"{clause[:1].upper()}{clause[1:]}"
    return f"{begun}{'' if clause.endswith('.') else '.'}"


def cell_lines(outcome: Outcome) -> list[str]:
    """What the table of files and runtimes says of a run."""
    snr, excess, precision = worst_snr(outcome), worst_excess(outcome), outcome.combination.gate
    parts = [] if snr is None else [f"SNR {snr:.0f} dB"]
    return [*parts, "gate: the task's metric" if precision in INT8 else f"{100 * excess:.3g} % of {precision} gate"]


def numbers_of(row: OutputNumerics) -> list[str]:
    """The numbers of an output."""
    return [
        f"{row.max_abs:.2e}",
        f"{row.max_rel:.1e}",
        "" if row.snr_db is None else f"{row.snr_db:.1f}",
        f"{row.cosine:.6f}",
        "" if row.top1_agreement is None else f"{row.top1_agreement:.2%}",
        f"{100 * row.excess:.3g} %",
    ]


def _compared(results: Results) -> dict[str, str]:
    manifest, data = results.bundle.manifest, results.data
    size = " × ".join(str(side) for side in manifest.input.shape[1:])
    entries = {
        "Model": f"{manifest.variant}, {manifest.task}, input {size}, {len(manifest.classes)} classes",
        "Reference": results.reference.title,
        "Inputs of the graphs": "; ".join(next((run.report.inputs for run in results.run if run.report), ())),
    }
    if data is not None:
        entries["Your data"] = f"{len(data.files)} {data.kind} {'with' if data.labelled else 'without'} labels"
    return entries


def _matrix(results: Results) -> dict[str, Any]:
    """Files down, runtimes across: outcomes, or why there is none."""
    own = results.reference.short != "PyTorch"  # then the reference is one of the cells
    cells = {(outcome.combination.file, outcome.combination.where): outcome for outcome in results.outcomes}
    run = [outcome.combination.where for outcome in results.outcomes if outcome.combination.reason is None]
    columns = list(dict.fromkeys([*([TITLES["onnxruntime"]] if own else []), *run]))
    rows: dict[str, list[Outcome | str]] = {}
    for file in dict.fromkeys(outcome.combination.file for outcome in results.outcomes):
        found = [cells.get((file, where)) for where in columns]
        rows[file] = [one if one is not None and one.combination.reason is None else "not run" for one in found]
        if own and file == results.bundle.default_file:
            rows[file][0] = "is the reference"
    return {"columns": columns, "rows": rows}


def _changes(results: Results) -> Rows | None:
    """Which classes became which others, of the runs where any did."""
    classes, data = results.bundle.manifest.classes, results.data
    rows = []
    for run in results.run:
        changes = {} if run.task is None else run.task.changes
        if changes:
            most = sorted(changes.items(), key=lambda item: -item[1])[:CHANGES]
            listed = ", ".join(f"{classes[old]} → {classes[new]} ({count:,})" for (old, new), count in most)
            more = " …" if len(changes) > CHANGES else ""
            rows.append([run.combination.file, run.combination.where, f"{sum(changes.values()):,}", listed + more])
    if not rows or data is None:
        return None
    heads = ["File", "Runtime", data.changing, "Reference → file, the most frequent first"]
    return Rows(heads=heads, rows=rows, numbers=[2])


def _layers(results: Results) -> list[Series]:
    return [
        Series(
            label=file,
            colour=PRECISIONS.index(errors.precision),
            modules=errors.modules,
            gate_db=limit if np.isfinite(limit := GATES[errors.precision].snr_db) else None,
        )
        for file, errors in results.layers.items()
        if errors.modules
    ]


def _scatters(results: Results) -> list[dict[str, str]]:
    """The plots of the key output, each with what it is of."""
    figures = []
    for run in results.run:
        if run.scatter is None:
            continue
        expected, found = (values.astype(np.float64) for values in run.scatter)
        rms = float(np.sqrt(np.mean((expected - found) ** 2)))
        share = rms / (float(np.sqrt(np.mean(expected**2))) or 1.0)
        caption = f"{run.combination.where}: off by {rms:.2g} on average, {100 * share:.2g} % of the signal (RMS)"
        plot = scatter_plot(*run.scatter, PRECISIONS.index(run.combination.gate))
        figures.append({"file": run.combination.file, "plot": plot, "caption": caption})
    return figures


def _made(results: Results) -> dict[str, str]:
    manifest = results.bundle.manifest
    return {
        "Runtimes": "; ".join(dict.fromkeys(outcome.runtime for outcome in results.run)) or "none",
        "Machine": f"{processor()}, {counted(available_cores(), 'core')}",
        "Verified with": _listed(tool_versions()),
        "Exported with": _listed(manifest.tools),
        "Provenance": "; ".join(f"{name}: {value}" for name, value in manifest.provenance.items()) or "unknown",
        "Licence of the weights": manifest.licence.name,
    }


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {release}" for name, release in versions.items())
