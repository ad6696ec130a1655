"""Plots of a verification's page: Matplotlib's SVG inside the page, in the colours of its style sheet, without script.

Series differ in colour and in marker, so that they can be told apart in print.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.printing import printable
from export.verification.layer_errors import ModuleError

CEILING_DB = 120.0  # errors below this are as good as none
MARKERS = ("o", "s", "D", "^")
COLOURS = ("#1f6fb2", "#c05a00", "#7a3fa0", "#00796b", "#8a6d00")  # for the series, as in the style sheet
SOFT, LINE, PANEL = "#5b6576", "#d9dde4", "#f5f6f8"  # text, lines and bands
VARIABLES = {SOFT: "soft", LINE: "line", PANEL: "panel"} | {colour: f"s{i}" for i, colour in enumerate(COLOURS)}
LABEL_PITCH = 0.016  # least distance of two stages' names, as a share of the axis
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "convmae",
    "text.parse_math": False,  # names are no formulas
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.edgecolor": LINE,
    "axes.axisbelow": True,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), SOFT),
}

Tooltips = dict[str, list[str]]  # name of an artist -> what each of its marks says


@dataclass(frozen=True, kw_only=True)
class Series:
    """One graph's layers."""

    label: str
    colour: int  # its place in COLOURS
    modules: Sequence[ModuleError]
    gate_db: float | None  # the gate of its outputs


def layer_plot(series: Sequence[Series], *, own: bool) -> Markup:
    """Signal-to-noise ratios over the layers of a model, one series for each graph.

    Args:
        series: their modules must be in the same order; some may lack a few.
        own: what each layer adds by itself, as points; else what has built up, as lines. Exact layers have no mark.
    """
    title = "Signal-to-noise ratio that each layer has by itself" if own else "Signal-to-noise ratio at each layer"
    with rc_context(SETTINGS):
        figure = Figure(figsize=(9.0, 3.3), layout="constrained")
        tooltips = _draw_layers(figure, series, own)
        return _inline(figure, "layers", title, tooltips)


def scatter_plot(expected: FloatArray, found: FloatArray, colour: int) -> Markup:
    """Values of the reference across, of a graph up; equal ones lie on the diagonal."""
    low, high = float(min(expected.min(), found.min())), float(max(expected.max(), found.max()))
    margin = 0.03 * (high - low or 1.0)
    limits = low - margin, high + margin
    with rc_context(SETTINGS):
        figure = Figure(figsize=(2.2, 2.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(limits, limits, color=LINE, linewidth=1)
        axes.scatter(expected, found, s=4, color=COLOURS[colour], alpha=0.45, linewidths=0, gid="marks-0")
        axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel="reference", ylabel="this file", yticks=[])
        axes.set_xticks([low, high], [f"{low:.3g}", f"{high:.3g}"])
        return _inline(figure, "scatter", "Values of the reference against those of this file", {})


def stage_of(module: str) -> str:
    """The part of a model that a module is in: the first two names of its path, without "encoder"."""
    names = module.removeprefix("encoder.").split(".")
    return ".".join(names[: 1 if names[0].startswith(("blocks", "patch_embed")) else 2])


def _draw_layers(figure: Any, series: Sequence[Series], own: bool) -> Tooltips:
    """The plot, and what its marks say."""
    axes = figure.subplots()
    order = _merged([[module.module for module in entry.modules] for entry in series])
    place = {module: index for index, module in enumerate(order)}
    drawn = [value for entry in series for _, value in _values(entry, own) if -CEILING_DB < value < CEILING_DB]
    low, high = (20 * math.floor(min(drawn) / 20), 20 * math.ceil(max(drawn) / 20 + 0.1)) if drawn else (0, 120)
    tooltips = _draw_stages(axes, order)
    marks = []
    for index, entry in enumerate(series):
        colour, values = COLOURS[entry.colour], _values(entry, own)
        shown = [(place[module], min(max(value, low), high)) for module, value in values]
        if not own:
            axes.plot(*zip(*shown, strict=True), color=colour, linewidth=1, gid=f"line-{index}")
        if entry.gate_db is not None and not own:
            axes.axhline(min(max(entry.gate_db, low), high), color=colour, linewidth=0.9, linestyle="--")
        marked = [
            (at, f"{name}: {value:.0f} dB ({entry.label})")
            for at, (name, value) in zip(shown, values, strict=True)
            if value < CEILING_DB
        ]
        across, up = [at[0] for at, _ in marked], [at[1] for at, _ in marked]
        marks.append(axes.scatter(across, up, s=11, color=colour, marker=MARKERS[entry.colour], gid=f"marks-{index}"))
        tooltips[f"marks-{index}"] = [text for _, text in marked]
    # a name that begins with "_" would be left out
    figure.legend(marks, [f" {printable(entry.label)}" for entry in series], loc="outside upper left", ncols=4)
    axes.set(xlim=(-0.5, len(order) - 0.5), ylim=(low, high), ylabel="dB", yticks=range(low, high + 1, 20))
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    return tooltips


def _values(entry: Series, own: bool) -> list[tuple[str, float]]:
    return [(module.module, module.own_db if own else module.built_up_db) for module in entry.modules]


def _draw_stages(axes: Any, order: Sequence[str]) -> Tooltips:
    """The stages of the model as alternating bands, with their names below where there is room."""
    tooltips: Tooltips = {}
    named: dict[float, str] = {}
    starts = [
        index for index in range(len(order)) if index == 0 or stage_of(order[index]) != stage_of(order[index - 1])
    ]
    for band, (start, end) in enumerate(zip(starts, [*starts[1:], len(order)], strict=True)):
        name, middle = printable(stage_of(order[start])), (start + end - 1) / 2
        shade = PANEL if band % 2 == 0 else "none"
        axes.axvspan(start - 0.5, end - 0.5, facecolor=shade, edgecolor="none", gid=f"band-{band}")
        tooltips[f"band-{band}"] = [name]
        if not named or middle - max(named) >= LABEL_PITCH * len(order):
            named[middle] = name
    axes.set_xticks(list(named), list(named.values()), rotation=38, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    return tooltips


def _merged(orders: Sequence[Sequence[str]]) -> list[str]:
    """One order of all modules, each where the first graph that has it has it."""
    merged: list[str] = []
    for order in orders:
        for index, module in enumerate(order):
            if module not in merged:
                merged.insert(merged.index(order[index - 1]) + 1 if index else 0, module)
    return merged


def _inline(figure: Any, kind: str, title: str, tooltips: Mapping[str, Sequence[str]]) -> Markup:
    """A figure as an element of an HTML page: its names are classes, its colours variables, its marks have tooltips."""
    written = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that its own font lacks; the page's has them
        figure.savefig(written, format="svg", transparent=True)
    root = ElementTree.fromstring(written.getvalue())
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.pop("clip-path", None)  # everything lies inside
        name = element.get("id", "")
        if element.tag == "g" and name:
            element.attrib.pop("id")
            element.set("class", name.partition("-")[0])
        uses = element.findall(".//{*}use")
        if name.startswith("marks"):  # hundreds, which all look the same
            for use in uses:
                element.set("style", use.attrib.pop("style", ""))
        for mark, text in zip(uses or [element], tooltips.get(name, ()), strict=False):
            ElementTree.SubElement(mark, "title").text = text
    for child in (*root.findall("metadata"), *root.findall("defs")):  # the page has its own style, and clips nothing
        root.remove(child)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib |= {"class": kind, "role": "img"}
    about = ElementTree.Element("title")
    about.text = title
    root.insert(0, about)
    svg = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return Markup(svg)
