"""Pictures of explanations: bars of features, a heat map over an image, coloured text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlcore import plots
from rlcore.explain import Explanation

BARS = 12  # features shown; the others are summed
MORE, LESS = plots.COLOURS[0], plots.COLOURS[1]  # raises the number, lowers it
_WHAT = "attribution to {} (blue raises it, orange lowers it)"
_COLUMNS, _LINE = 84, 0.22  # characters and inches of a line of text


def save(explanations: Sequence[Explanation], path: Path) -> None:
    """Draw one explanation below the other and write the picture.

    Raises:
        UserError: there is no matplotlib, or the file cannot be written.
    """
    with plots.house_style():
        from matplotlib.figure import Figure

        heights = [_height(one) for one in explanations]
        figure = Figure(figsize=(7.2, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(explanations), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, one in zip(parts, explanations, strict=True):
            part.suptitle(_title(one), fontsize=10, fontweight="bold")
            (_text if one.tokens else _bars if one.names else _heat)(part, one)
        plots.save(figure, path)


def _height(one: Explanation) -> float:
    if one.tokens:
        return 1.3 + _LINE * len(_lines(one))
    return 1.3 + 0.3 * min(len(one.names), BARS + 1) if one.names else 3.6


def _title(one: Explanation) -> str:
    first = f"{one.of} = {_number(one.value)}; at the baseline {_number(one.baseline_value)}"
    return "\n".join([first, *textwrap.wrap(f"baseline: {one.baseline}", 90)])


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign},.0f}" if abs(value) >= 1000 else f"{value:{sign}.3g}"


def _colours() -> Any:
    """Return the colours of attributions from the most lowering to the most raising one."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("attribution", [LESS, "white", MORE])


def _bars(figure: Any, one: Explanation) -> None:
    order = np.argsort(-np.abs(one.attributions))
    shown, rest = order[:BARS], order[BARS:]
    labels = [textwrap.shorten(one.names[i], 40) for i in shown]
    values = one.attributions[shown].tolist()
    if len(rest):
        labels.append(f"{len(rest)} others")
        values.append(float(one.attributions[rest].sum()))
    axes = figure.subplots()
    places = np.arange(len(values))
    drawn = axes.barh(places, values, color=[MORE if value > 0 else LESS for value in values], height=0.7)
    axes.bar_label(drawn, [_number(value, "+") for value in values], padding=3, fontsize=9)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.grid(False)
    axes.axvline(0, color="#444444", linewidth=1)
    axes.margins(x=0.16)
    axes.set_xlabel(_WHAT.format(one.of))


def _heat(figure: Any, one: Explanation) -> None:
    left, right = figure.subplots(1, 2)
    assert one.image is not None
    grey = one.image if one.image.ndim == 2 else one.image.mean(-1)
    left.imshow(one.image, cmap="gray")
    left.set_title("as it is seen", fontweight="normal")
    right.imshow(grey, cmap="gray", alpha=0.25)
    most = max(float(np.abs(one.attributions).max()), 1e-12)
    drawn = right.imshow(one.attributions, cmap=_colours(), vmin=-most, vmax=most, alpha=0.8)
    right.set_title("what drives it", fontweight="normal")
    for axes in (left, right):
        axes.axis("off")
    figure.colorbar(drawn, ax=right, label=_WHAT.format(one.of).replace(" (", "\n("), shrink=0.8)


def _lines(one: Explanation) -> list[list[tuple[int, str]]]:
    """Return the tokens of each line, with the column where each begins."""
    lines: list[list[tuple[int, str]]] = [[]]
    column = 0
    for name in one.names:
        joined = name.startswith("##")  # goes on with the word before it
        text = name.removeprefix("##").replace("Ġ", "").replace("Ċ", "⏎") or "␣"
        column += 0 if joined or not lines[-1] else 1
        if column + len(text) > _COLUMNS and lines[-1]:
            lines.append([])
            column = 0
        lines[-1].append((column, text))
        column += len(text)
    return lines


def _text(figure: Any, one: Explanation) -> None:
    from matplotlib import cm, colors

    lines = _lines(one)
    axes = figure.subplots()
    axes.set_xlim(0, _COLUMNS)
    axes.set_ylim(len(lines), 0)
    axes.axis("off")
    most = max(float(np.abs(one.attributions).max()), 1e-12)
    norm = colors.Normalize(-most, most)
    shades = cm.ScalarMappable(norm, _colours())
    shares = iter(one.attributions.tolist())
    for row, line in enumerate(lines):
        for column, text in line:
            share = next(shares)
            axes.axhspan(row + 0.08, row + 0.92, column / _COLUMNS, (column + len(text)) / _COLUMNS,
                         facecolor=shades.to_rgba(share), linewidth=0)  # fmt: skip
            ink = "white" if abs(share) > 0.7 * most else "black"
            axes.text(column, row + 0.55, text, family="monospace", fontsize=9.4, va="center", color=ink)
    bar = figure.colorbar(shades, ax=axes, orientation="horizontal", fraction=0.05, aspect=50, pad=0.02)
    bar.set_label(_WHAT.format(one.of))
