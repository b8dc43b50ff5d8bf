"""Time and accuracy of all peers in one picture, a panel a workload."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .measure import Row
from .peers import PEERS
from .quality import SOLVED
from .report import Result

WIDTH_INCHES, PANEL_INCHES, DPI = 10.0, 2.7, 120
BEST, WORST = 1e-9, 1.0  # optimality is clipped to these
COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#f2b701", "#e8871e", "#8c564b", "#9467bd", "#17becf")
MARKERS = ("*", "o", "s", "v", "^", "D", "P", "X")
STYLES = {peer.short: (color, marker) for peer, color, marker in zip(PEERS, COLORS, MARKERS)}

Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels


def draw(path: str, results: Sequence[Result]) -> None:
    """Write the picture: time on x, worst optimality on y, both logarithmic.

    Parameters
    ----------
    path : str
        Of a PNG file.
    results : sequence of Result
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    across = min(3, len(results))
    down = math.ceil(len(results) / across)
    figure = Figure(figsize=(WIDTH_INCHES, PANEL_INCHES * down + 0.9), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False)
    for panel, result in zip(panels.flat, results):
        _frame(panel, result)
    for panel in panels.flat[len(results) :]:
        panel.set_axis_off()
    for panel in panels[:, 0]:
        panel.set_ylabel("worst optimality", fontsize=8)
    present = [s for s in STYLES if any(row.short == s and not row.note for r in results for row in r.rows)]
    handles = [
        Line2D([], [], color=STYLES[s][0], marker=STYLES[s][1], linestyle="", markersize=_size(s), label=s)
        for s in present
    ]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=9, frameon=False, handletextpad=0.1)
    caption = "Lower left is better. Dotted: solved below. Hollow: time extrapolated from a sample of the columns."
    figure.text(0.5, 1 - 0.12 / figure.get_figheight(), caption, ha="center", va="top", fontsize=9)
    bottom, top = 0.5 / figure.get_figheight(), 1 - 0.35 / figure.get_figheight()
    figure.tight_layout(rect=(0, bottom, 1, top), h_pad=0.8, w_pad=0.8)
    canvas.draw()  # positions are known from here on
    for panel, result in zip(panels.flat, results):
        _label(panel, canvas.get_renderer(), _points(result))
    figure.savefig(path, dpi=DPI)


def _size(short: str) -> float:
    return 12 if STYLES[short][1] == "*" else 7


def _points(result: Result) -> list[tuple[Row, float, float]]:
    rows = [row for row in result.rows if math.isfinite(row.steady)]
    return [(row, row.steady, float(np.clip(row.worst, BEST, WORST))) for row in rows]


def _frame(panel: Any, result: Result) -> None:
    points = _points(result)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_ylim(BEST / 6, WORST * 6)
    if points:
        times = [t for _, t, _ in points]
        panel.set_xlim(min(times) / 4, max(times) * 8)  # room for labels, which stand on the right by preference
    panel.axhline(SOLVED[np.dtype(result.dtype).itemsize], color="0.5", linestyle=":", linewidth=1)
    for row, t, y in points:
        color, marker = STYLES[row.short]
        face = "none" if row.sampled else color
        panel.plot(t, y, marker, color=color, markerfacecolor=face, markersize=_size(row.short), zorder=3)
    N = " x ".join(map(str, result.columns[:-2] + result.columns[-1:]))
    shape = " x ".join(map(str, result.matrix[-2:]))
    panel.set_title(f"{result.name}: {shape}, {N} column{'s' * (N != '1')}", fontsize=9)
    panel.set_xlabel("seconds", fontsize=8, labelpad=1)
    panel.tick_params(labelsize=7)
    panel.set_yticks([1e-9, 1e-6, 1e-3, 1], ["≤ 1e-9", "1e-6", "1e-3", "≥ 1"])
    panel.minorticks_off()
    panel.grid(True, color="0.92")
    panel.set_axisbelow(True)


def _label(panel: Any, renderer: Any, points: list[tuple[Row, float, float]]) -> None:
    """Put each name at the nearest place that is free."""
    frame = panel.get_window_extent(renderer)
    centres = [panel.transData.transform((t, y)) for _, t, y in points]
    taken: list[Box] = []
    for (row, _, _), (x, y) in zip(points, centres):
        radius = 0.5 * DPI / 72 * _size(row.short)
        taken.append((x - radius, y - radius, x + radius, y + radius))
    for (row, t, y), centre in zip(points, centres):
        color, _ = STYLES[row.short]
        weight = "bold" if row.short == PEERS[0].short else "normal"
        text = panel.annotate(
            row.short,
            (t, y),
            (0, 0),
            textcoords="offset pixels",
            fontsize=7.5,
            color=color,
            weight=weight,
            ha="center",
            va="center",
            zorder=4,
        )
        extent = text.get_window_extent(renderer)
        half = (extent.width / 2 + 1, extent.height / 2)
        offset = _free_place(centre, half, taken, (frame.x0 + 3, frame.y0 + 3, frame.x1 - 3, frame.y1 - 3))
        text.set_position(offset)
        at = (centre[0] + offset[0], centre[1] + offset[1])
        taken.append((at[0] - half[0], at[1] - half[1], at[0] + half[0], at[1] + half[1]))
        end = [math.copysign(max(abs(d) - h, 0), d) for d, h in zip(offset, half)]  # of the box, nearest to the marker
        if math.hypot(*end) > 16:  # far away: a line says which marker it is
            line = {"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
            panel.annotate("", (t, y), end, textcoords="offset pixels", arrowprops=line)


def _free_place(centre: Any, half: tuple[float, float], taken: list[Box], frame: Box) -> tuple[float, float]:
    """The first offset, by increasing distance, where a box touches no other and is within the frame."""
    for distance in range(9, 140, 4):
        for angle in (0, 90, 270, 180, 45, 315, 135, 225):
            c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            dx = c * (distance + half[0]) if abs(c) > 0.1 else 0.0
            dy = s * (distance + half[1]) if abs(s) > 0.1 else 0.0
            x, y = centre[0] + dx, centre[1] + dy
            box = (x - half[0], y - half[1], x + half[0], y + half[1])
            inside = frame[0] < box[0] and frame[1] < box[1] and box[2] < frame[2] and box[3] < frame[3]
            if inside and not any(_overlap(box, other) for other in taken):
                return dx, dy
    return half[0] + 9, 0.0


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
