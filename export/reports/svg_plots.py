"""Plots of a verification's page as inline SVG: no script, no fonts, colours from the page's style sheet.

Classes `s0`, `s1`, ... are the series, which differ in colour and in marker, so that they can be told apart in print.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from convmae_deploy.backends.base import FloatArray
from export.verification.layer_errors import ModuleError

CEILING_DB = 120.0  # errors below this are as good as none
WIDTH, HEIGHT = 900, 300  # of a plot of layers, in its own units
LEFT, RIGHT, TOP, BOTTOM = 70, 12, 12, 84  # margins
SIDE = 200  # of a scatter plot
MARKERS = ("circle", "square", "diamond", "triangle")
LABEL_PITCH = 15.0  # least distance of two labels on the axis of layers

Across = Callable[[str], float]  # a module's place
Up = Callable[[float], float]  # a value's place


@dataclass(frozen=True, kw_only=True)
class Series:
    """One graph's layers."""

    label: str
    colour: int  # of the classes s0, s1, ...
    modules: Sequence[ModuleError]
    gate_db: float | None  # of its outputs


def layer_plot(series: Sequence[Series], *, own: bool) -> str:
    """Signal-to-noise ratios over the layers of a model, one series for each graph.

    Args:
        series: their modules must be in the same order; some may lack a few.
        own: what each layer adds by itself, as points; else what has built up, as lines. Exact layers have no mark.
    """
    order = _merged([[module.module for module in entry.modules] for entry in series])
    place = {module: index for index, module in enumerate(order)}
    values = [(module.own_db if own else module.built_up_db) for entry in series for module in entry.modules]
    drawn = [value for value in values if -CEILING_DB < value < CEILING_DB] or [0.0, CEILING_DB]
    low, high = 20 * math.floor(min(drawn) / 20), 20 * math.ceil(max(drawn) / 20 + 0.1)
    step = (WIDTH - LEFT - RIGHT) / max(len(order), 1)

    def x(module: str) -> float:
        return LEFT + (place[module] + 0.5) * step

    def y(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)

    parts = [*_bands(order, step), *_levels(low, high, y)]
    for entry in series:
        parts += _series(entry, own, x, y)
    title = "Signal-to-noise ratio that each layer has by itself" if own else "Signal-to-noise ratio at each layer"
    return _svg(WIDTH, HEIGHT, "layers", title, parts)


def scatter_plot(expected: FloatArray, found: FloatArray, index: int) -> str:
    """Values of the reference across, of a graph up; equal ones lie on the diagonal."""
    low, high = float(min(expected.min(), found.min())), float(max(expected.max(), found.max()))
    span = high - low or 1.0
    margin, inner = 26, SIDE - 34

    def across(value: float) -> float:
        return margin + (value - low) / span * inner

    def up(value: float) -> float:
        return SIDE - margin - (value - low) / span * inner

    parts = [
        f'<rect class="frame" x="{margin}" y="{SIDE - margin - inner}" width="{inner}" height="{inner}"/>',
        f'<line class="level" x1="{margin}" y1="{SIDE - margin}" x2="{margin + inner}" y2="{SIDE - margin - inner}"/>',
        f'<text class="tick" x="{margin}" y="{SIDE - 12}">{low:.3g}</text>',
        f'<text class="tick end" x="{margin + inner}" y="{SIDE - 12}">{high:.3g}</text>',
        f'<text class="tick middle" x="{margin + inner / 2}" y="{SIDE - 12}">reference</text>',
        f'<text class="tick middle" transform="translate({margin - 8} {SIDE - margin - inner / 2}) rotate(-90)">'
        "this file</text>",
    ]
    points = zip(expected.tolist(), found.tolist(), strict=True)
    parts += [f'<circle class="dot s{index}" cx="{across(a):.1f}" cy="{up(b):.1f}" r="2"/>' for a, b in points]
    return _svg(SIDE, SIDE, "scatter", "Values of the reference against those of this file", parts)


def key(series: Sequence[Series]) -> str:
    """What the series are called."""
    entries = []
    for entry in series:
        marker, label = _marker(entry.colour, 8, 8), entry.label
        entries.append(
            f'<span class="key"><svg viewBox="0 0 16 16" aria-hidden="true">{marker}</svg>{escape(label)}</span>'
        )
    return f'<p class="keys">{"".join(entries)}</p>'


def _series(entry: Series, own: bool, x: Across, y: Up) -> list[str]:
    parts, index = [], entry.colour
    if entry.gate_db is not None and not own:
        level = y(entry.gate_db)
        parts.append(
            f'<line class="gate s{index}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level:.1f}" y2="{level:.1f}"/>'
        )
    if not own:
        points = " ".join(f"{x(module.module):.1f},{y(module.built_up_db):.1f}" for module in entry.modules)
        parts.append(f'<polyline class="line s{index}" points="{points}"/>')
    for module in entry.modules:
        value = module.own_db if own else module.built_up_db
        if value >= CEILING_DB:
            continue
        told = f"{module.module}: {value:.0f} dB ({entry.label})"
        parts.append(f"<g>{_marker(index, x(module.module), y(value))}<title>{escape(told)}</title></g>")
    return parts


def _bands(order: Sequence[str], step: float) -> list[str]:
    """The stages of the model as alternating bands with their names below."""
    parts: list[str] = []
    start, last = 0, -LABEL_PITCH
    stages = [stage_of(module) for module in order]
    for index in range(len(stages) + 1):
        if index == len(stages) or stages[index] != stages[start]:
            left, width = LEFT + start * step, (index - start) * step
            shade = "even" if len(parts) % 2 == 0 else "odd"
            parts.append(
                f'<g><rect class="band {shade}" x="{left:.1f}" y="{TOP}" width="{width:.1f}" '
                f'height="{HEIGHT - TOP - BOTTOM}"/>'
            )
            middle = left + width / 2
            if middle - last >= LABEL_PITCH:
                parts[-1] += (
                    f'<text class="tick end" transform="translate({middle + 4:.1f} {HEIGHT - BOTTOM + 12}) '
                    f'rotate(-38)">{escape(stages[start])}</text>'
                )
                last = middle
            parts[-1] += f"<title>{escape(stages[start])}</title></g>"
            start = index
    return parts


def stage_of(module: str) -> str:
    """The part of a model that a module is in: the first two names of its path, without "encoder"."""
    names = module.removeprefix("encoder.").split(".")
    return ".".join(names[: 1 if names[0].startswith(("blocks", "patch_embed")) else 2])


def _levels(low: float, high: float, y: Up) -> list[str]:
    """Horizontal lines every 20 dB, with their values."""
    parts = []
    for level in range(20 * math.ceil(low / 20), int(high) + 1, 20):
        at = y(level)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{at + 4:.1f}">{level}</text>')
    parts.append(
        f'<text class="tick middle" transform="translate(12 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)">dB</text>'
    )
    return parts


def _marker(index: int, x: float, y: float) -> str:
    shape = MARKERS[index % len(MARKERS)]
    if shape == "circle":
        return f'<circle class="mark s{index}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    path = {
        "square": "m-2.8 -2.8h5.6v5.6h-5.6z",
        "diamond": "m0 -4l4 4l-4 4l-4 -4z",
        "triangle": "m0 -4l3.8 6.8h-7.6z",
    }[shape]
    return f'<path class="mark s{index}" d="M{x:.1f} {y:.1f}{path}"/>'


def _merged(orders: Sequence[Sequence[str]]) -> list[str]:
    """One order of all modules, each where the first graph that has it has it."""
    merged: list[str] = []
    for order in orders:
        for index, module in enumerate(order):
            if module not in merged:
                merged.insert(merged.index(order[index - 1]) + 1 if index else 0, module)
    return merged


def _svg(width: int, height: int, kind: str, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img"><title>{escape(title)}</title>'
        f"{''.join(parts)}</svg>"
    )
