"""The pictures of a report as inline SVG, coloured by CSS variables of the page: one picture for light and dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np

from edgedl.types import Verdict

# What matplotlib draws with -> what the page's style sheet colours it with.
INK, MUTED, LINE, ACCENT, BAD, GROUND = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", BAD: "--fail", GROUND: "--ground"}
HEAT = (0.18, 0.42, 0.86)  # the cell colour; its opacity is the share, so it reads on white and on black
MARKERS = {
    Verdict.PASS: "o",
    Verdict.FAIL: "X",
    Verdict.INCONCLUSIVE: "D",
    Verdict.UNCHECKED: "s",
    Verdict.INFO: "o",
}
POINTS_PER_INCH = 72
PIXELS_PER_POINT = 4 / 3
LABELLED_CLASSES = 32  # above it tick labels would overlap
COUNTED_CLASSES = 14  # above it a count does not fit its cell


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One row of the interval picture, in the unit of its axis; `text` is the value in words."""

    label: str
    text: str
    value: float
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    verdict: Verdict = Verdict.INFO


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar: its length, what stands beside it, and a range drawn as a whisker."""

    value: float
    text: str
    is_main: bool = True
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class BarGroup:
    """The bars of one artifact under its name and, smaller, what else tells it from the others."""

    label: str
    detail: str
    bars: tuple[Bar, ...]


def shorten(label: str, length: int) -> str:
    """`label` cut in the middle, where file names differ least, to `length` characters."""
    if len(label) <= length:
        return label
    tail = (length - 1) * 2 // 3
    return f"{label[: length - 1 - tail]}…{label[-tail:]}"


def numbered(svg: str, number: int) -> str:
    """The picture with ids that no other picture of the page has."""
    return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>plot{number}-", svg)


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's own defaults whatever the user's, text as text, `$` a dollar sign, the same ids each time."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # the browser has the glyph
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "edgedl", "text.parse_math": False})
        yield


@_style()
def differences(rows: Sequence[Difference], *, unit: str, alt: str) -> str:
    """Each difference with its interval, the zero it is compared with, and the region that its limit forbids."""
    height = 0.66 * len(rows) + 0.62
    figure, axes = _canvas(width=5.0, height=height)
    axes.set_position((0.02, 0.5 / height, 0.96, 1 - 0.54 / height))
    left, right = _span(rows)
    axes.set(xlim=(left, right), ylim=(len(rows) - 0.35, -0.65), yticks=[])
    for y, row in enumerate(rows):
        _difference(axes, y, row, left, right)
    axes.tick_params(axis="x", colors=MUTED, labelsize=9, length=3)
    axes.set_xlabel(f"difference to the reference in {unit}, worse to the right →", color=MUTED, fontsize=9)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    return _svg(figure, alt)


@_style()
def bars(groups: Sequence[BarGroup], *, alt: str) -> str:
    """Horizontal bars from zero, the name above and the value beside each: long names fit."""
    height = sum(0.5 + 0.23 * len(group.bars) for group in groups)
    figure, axes = _canvas(width=4.4, height=height)
    axes.set_position((0, 0, 1, 1))
    longest = max((max(bar.value, bar.high or 0) for group in groups for bar in group.bars), default=0) or 1
    axes.set(xlim=(0, longest / 0.58), ylim=(height, 0))
    axes.axis("off")
    y = 0.0
    for group in groups:
        axes.text(0, y + 0.12, shorten(group.label, 48), color=INK, fontsize=9.5, va="center")
        axes.text(0, y + 0.28, shorten(group.detail, 56), color=MUTED, fontsize=8, va="center")
        y += 0.38
        for bar in group.bars:
            _bar(axes, y + 0.1, bar, longest)
            y += 0.23
        y += 0.12
    return _svg(figure, alt)


@_style()
def confusion(matrix: Any, labels: Sequence[str], *, alt: str) -> str:
    """Rows are true classes, columns predictions, the shade the root of the row's share. `matrix` (classes, same)."""
    counts = np.asarray(matrix, dtype=np.float64)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    opacity = np.sqrt(share)  # rare confusions stay visible
    pixels = np.concatenate([np.broadcast_to(np.array(HEAT), (*share.shape, 3)), opacity[..., None]], axis=2)
    figure, axes = _canvas(width=4.6, height=4.6, layout="constrained")
    axes.imshow(pixels, interpolation="none", aspect="equal")
    names = [shorten(label, 12) for label in labels]
    classes = len(names)
    if classes <= LABELLED_CLASSES:
        size = 9 if classes <= COUNTED_CLASSES else 6.5
        turned = any(len(name) > 24 // max(classes, 4) for name in names)
        axes.set_xticks(range(classes), names, rotation=90 if turned else 0, fontsize=size)
        axes.set_yticks(range(classes), names, fontsize=size)
    axes.tick_params(colors=MUTED, length=0 if classes <= LABELLED_CLASSES else 3)
    numbered = " (class number)" if classes > LABELLED_CLASSES else ""
    axes.set_xlabel(f"predicted{numbered}", color=MUTED, fontsize=9)
    axes.set_ylabel(f"true{numbered}", color=MUTED, fontsize=9)
    for spine in axes.spines.values():
        spine.set_color(LINE)
    if classes <= COUNTED_CLASSES:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "#ffffff" if opacity[row, column] > 0.6 else INK
            count = f"{int(counts[row, column]):,}"
            axes.text(column, row, count, ha="center", va="center", color=color, fontsize=8)
    return _svg(figure, alt)


def _difference(axes: Any, y: int, row: Difference, left: float, right: float) -> None:
    edge = right - (right - left) * 0.005
    axes.text(left, y - 0.4, shorten(row.label, 36), color=INK, fontsize=9.5, va="center")
    axes.text(edge, y - 0.4, row.text, color=INK, fontsize=9.5, va="center", ha="right")
    axes.plot([0, 0], [y - 0.2, y + 0.32], color=MUTED, linewidth=1)
    if row.limit is not None:
        axes.fill_betweenx([y - 0.2, y + 0.32], row.limit, right, color=BAD, alpha=0.13, linewidth=0)
        axes.plot([row.limit] * 2, [y - 0.2, y + 0.32], color=BAD, linewidth=1.4, linestyle=(0, (4, 2)))
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [y + 0.06] * 2, color=ACCENT, linewidth=2.2, solid_capstyle="butt")
        for bound in (row.low, row.high):
            axes.plot([bound] * 2, [y - 0.06, y + 0.18], color=ACCENT, linewidth=2.2)
    axes.plot(
        [row.value], [y + 0.06], marker=MARKERS[row.verdict], color=ACCENT, markersize=9.5, markeredgecolor=GROUND
    )


def _span(rows: Sequence[Difference]) -> tuple[float, float]:
    """The ends of the axis: every bound, zero and every limit, with room beyond."""
    ends = [0.0]
    for row in rows:
        ends.extend(v for v in (row.value, row.low, row.high, row.limit) if v is not None)
    room = 0.12 * ((max(ends) - min(ends)) or 1.0)
    return min(ends) - room, max(ends) + room


def _bar(axes: Any, y: float, bar: Bar, longest: float) -> None:
    axes.barh(y, bar.value, height=0.16, color=ACCENT, alpha=1 if bar.is_main else 0.45)
    end = bar.value
    if bar.low is not None and bar.high is not None:
        axes.plot([bar.low, bar.high], [y] * 2, color=INK, linewidth=1.2)
        end = max(end, bar.high)
    axes.text(end + longest * 0.02, y, bar.text, color=INK, fontsize=9, va="center")


def _canvas(*, width: float, height: float, layout: Literal["constrained"] | None = None) -> tuple[Any, Any]:
    """A transparent figure of `width` by `height` inches with one pair of axes, outside pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    axes = figure.add_subplot()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    return figure, axes


def _svg(figure: Any, alt: str) -> str:
    """The figure as an <svg> element for a page: in its font and colours, no global styles, `alt` as its text."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    body = stream.getvalue()
    body = body[body.index("<svg") :]
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*;?", "", body)
    for color, variable in VARIABLES.items():
        body = body.replace(color, f"var({variable})")
    width, height = (side * POINTS_PER_INCH for side in figure.get_size_inches())
    size = f'viewBox="0 0 {width:.6g} {height:.6g}" style="max-width: {width * PIXELS_PER_POINT:.0f}px"'
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} class="plot" role="img" aria-label="{escape(alt)}" {size}>{body}'
