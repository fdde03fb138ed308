"""Figures inside the page: matplotlib's as SVG that follows the page's colours, and what a pointer reads off them.

Letters and axes are drawn in an ink that no figure uses and that becomes the page's ``currentColor``; what a figure
paints in a colour of its own stays.
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlcore.plots import COLOURS, house_style

INK = "#010203"
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_BARE = ("figure.facecolor", "axes.facecolor", "legend.facecolor", "savefig.facecolor")
_MOST = 400  # points of a line that a pointer can read
_BINS = 30
_DOTTED = 12  # points of a line, at most, that are marked


class Picture(NamedTuple):
    """A figure of the page.

    Attributes:
        svg: an <svg> element; empty: the picture is in ``source``.
        alt: what it shows, in words.
        caption: what stands beside it; may be empty.
        plots: of each panel that a pointer reads its box, the quantity along x, and its lines, in fractions of the
            figure from its upper left corner.
        source: a data URI of a still or moving picture.
        still: a data URI of what is shown where nothing may move, in print for one; empty: ``source`` itself.
    """

    svg: str = ""
    alt: str = ""
    caption: str = ""
    plots: Sequence[dict[str, Any]] = ()
    source: str = ""
    still: str = ""


class Line(NamedTuple):
    """A named curve y (n,) over x (n,), with the ends of its interval where it has one."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@contextlib.contextmanager
def inked() -> Iterator[None]:
    """Let figures that are made meanwhile have axes and letters in the page's ink, and no paper of their own."""
    import matplotlib as mpl

    with mpl.rc_context(dict.fromkeys(_INKED, INK) | dict.fromkeys(_BARE, "none")):
        yield


def inline(figure: Any, name: str, alt: str, caption: str = "", black_is_ink: bool = True) -> Picture:
    """Return a matplotlib figure as a picture.

    Args:
        figure: drawn in whatever style.
        name: sets its elements' ids apart from other figures'.
        alt, caption: as `Picture` has them.
        black_is_ink: black letters follow the page's colour, too; not those on a coloured ground.
    """
    import matplotlib as mpl

    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "rlcore"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    plots = [plot for axes in figure.axes if axes.get_visible() and (plot := _plot(figure, axes))]  # as just laid out
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|font-family: [^;\"]*;?", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    fill = ' fill="currentColor"' if black_is_ink else ""
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1"{fill} aria-hidden="true">', svg, count=1)
    svg = svg.replace(INK, "currentColor").replace("stroke: #000000", "stroke: currentColor")
    return Picture(svg, alt, caption, plots)


def _plot(figure: Any, axes: Any) -> dict[str, Any] | None:
    """Return what a pointer reads in one panel; None where it has no lines with names of their own."""
    size = np.array([figure.bbox.width, figure.bbox.height])
    lines = []
    for line in axes.get_lines():
        points = np.asarray(line.get_xydata(), dtype=float)
        points = points[np.isfinite(points).all(1)]
        if str(line.get_label()).startswith("_") or len(points) < 2:
            continue
        points = points[:: -(-len(points) // _MOST)]
        at = axes.transData.transform(points) / size * [1, -1] + [0, 1]
        seen = [[*map(_short, place), *(float(f"{x:.6g}") for x in p)] for place, p in zip(at, points, strict=True)]
        name, colour = str(line.get_label()).replace("\n", ", "), line.get_color()
        lines.append({"name": name, "colour": "currentColor" if colour == INK else colour, "points": seen})
    if not lines:
        return None
    (left, bottom), (right, top) = axes.get_window_extent().get_points() / size
    x = axes.get_xlabel() or figure.get_supxlabel()
    return {"box": [*map(_short, (left, 1 - top, right, 1 - bottom))], "x": x, "lines": lines}


def _short(fraction: float) -> float:
    return round(float(fraction), 4)


def data_uri(data: bytes, kind: str) -> str:
    """Return bytes as a data URI of a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def lines(drawn: Sequence[Line], name: str, xlabel: str, ylabel: str, small: bool = False) -> Picture:
    """Draw a few named lines and their intervals; ``small``: as one of many, its only line named by the caption."""
    from matplotlib.ticker import EngFormatter

    with _figure((3.2, 2.0) if small else (5.8, 3.2)) as (figure, axes):
        for line, colour in zip(drawn, COLOURS, strict=False):
            marker = "o" if len(line.x) <= _DOTTED else ""
            axes.plot(
                line.x, line.y, marker=marker, ls="-", color=colour, label=line.name, lw=1.4 if small else 2, ms=3.5
            )
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
        axes.set_xlabel(xlabel, fontsize=8 if small else None)
        axes.margins(x=0.02)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if small:
            axes.tick_params(labelsize=8)
            axes.locator_params(nbins=4)
        else:
            axes.set_ylabel(ylabel)
            figure.legend(loc="outside upper left", ncols=2)
    ends = "; ".join(
        f"{line.name} from {line.y[0]:.4g} to {line.y[-1]:.4g}, between {line.y.min():.4g} and {line.y.max():.4g}"
        for line in drawn
    )
    return inline(figure, name, f"Over {xlabel}: {ends}.", drawn[0].name if small else "")


def histogram(values: Sequence[float], marks: Mapping[str, float], name: str, unit: str, what: str) -> Picture:
    """Draw how often values (n,) in a unit occur among what is counted, with lines at named values."""
    with _figure((5.2, 2.7)) as (figure, axes):
        low, high = min(values), max(values)
        edges = np.linspace(low, high, _BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
        axes.hist(values, edges, color=COLOURS[5])
        for (text, value), style, colour in zip(marks.items(), ("-", "--"), (COLOURS[1], INK), strict=False):
            axes.axvline(value, color=colour, linestyle=style, linewidth=1.8)
            axes.plot([], [], color=colour, linestyle=style, linewidth=1.8, label=f"{text} {value:.4g}")
        axes.set(xlabel=unit, ylabel=what)
        axes.yaxis.get_major_locator().set_params(integer=True)
        figure.legend(loc="outside upper left", ncols=2)
    said = ", ".join(f"{text} {value:.4g}" for text, value in marks.items())
    return inline(figure, name, f"Histogram of {len(values)} {what} from {low:.4g} to {high:.4g}, {unit}; {said}.")


@contextlib.contextmanager
def _figure(size: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    from matplotlib.figure import Figure

    with house_style(), inked():
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots()
