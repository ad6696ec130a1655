"""A benchmark as a picture: latency on the left, throughput on the right, a line for each combination."""

from pathlib import Path

from convmae_deploy.errors import ConvMAEError, missing_extra
from export.benchmarking.report import BenchmarkRecord

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")  # one for each batch size


def draw_record(path: Path, record: BenchmarkRecord) -> None:
    """Draws what was measured into a PNG; fastest at the top.

    Raises:
        ConvMAEError: nothing was measured, or Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: no window system, no global state
    except ImportError as error:
        raise missing_extra("the plot", "Matplotlib", "export") from error
    measured = [(row, row.timing) for row in record.rows if row.timing is not None]
    if not measured:
        raise ConvMAEError("nothing was measured, so there is nothing to draw")
    sizes = sorted({row.batch_size for row, _ in measured})
    colours = {size: COLOURS[index % len(COLOURS)] for index, size in enumerate(sizes)}
    ranked = sorted(measured, key=lambda pair: (pair[0].batch_size, pair[1].p50_ms))
    places = {name: place for place, name in enumerate(dict.fromkeys(row.combination for row, _ in ranked))}
    figure = Figure(figsize=(10, 1.6 + 0.32 * len(places)), layout="constrained")
    machine = record.machine
    figure.suptitle(
        f"{record.bundle} ({record.task}) on {machine['device']}, threads: {record.threads}\n"
        f"{record.rounds} interleaved rounds; preprocessing not included",
        fontsize=9,
    )
    latency, throughput = figure.subplots(1, 2, sharey=True)
    for row, timing in measured:
        place, colour = places[row.combination], colours[row.batch_size]
        if row.batch_size == sizes[0]:
            latency.plot([timing.p50_ms, timing.p99_ms], [place] * 2, "-", color=colour, alpha=0.4, linewidth=5)
            latency.plot(timing.p50_ms, place, "o", color=colour)
            label = (timing.p99_ms, place), (7, -3)  # right of the bar
            latency.annotate(f"{timing.p50_ms:.4g}", *label, textcoords="offset points", fontsize=7)
        throughput.plot(timing.images_per_second, place, "o", color=colour)
    for size in sizes:
        throughput.plot([], [], "o", color=colours[size], label=f"batch {size}")
    unit = record.unit
    latency.set(xlabel="ms a run", title=f"batch {sizes[0]}: median, and to the 99th percentile")
    throughput.set(xlabel=f"{unit}s a second at the median", title="all batch sizes")
    throughput.legend(frameon=False, fontsize=8)
    latency.set_yticks(range(len(places)), list(places))
    latency.set_ylim(len(places) - 0.4, -0.8)  # both share it
    for axes in (latency, throughput):
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, format="png", dpi=120)
