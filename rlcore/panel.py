"""What an agent knows, drawn beside the picture of what it does: return so far, step, values or probabilities.

Drawn with Pillow, which takes about a millisecond a picture. Colours are those of Okabe and Ito (2008), which
colour-blind people tell apart; the action that is chosen is marked by a wedge as well.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

WIDTH = 280  # of the panel, pixels
LOWEST = 320  # smaller pictures are enlarged to at least this height
PAPER, INK, FAINT, TRACK = (248, 248, 248), (34, 34, 34), (110, 110, 110), (222, 222, 222)
CHOSEN, OTHER, CURVE = (213, 94, 0), (86, 180, 233), (0, 114, 178)
HISTORY = 200  # steps in the curve
_CURVE, _TOP, _EDGE = (96, 190), 76, 14  # heights of the curve, of the bars' beginning, and the margin
_BAR = (112, 206)  # from, to


class Moment(NamedTuple):
    """A state of an episode and what the agent makes of it."""

    picture: np.ndarray[Any, Any]  # (H, W, 3) uint8
    step: int  # actions so far
    total: float  # rewards so far
    action: np.ndarray[Any, Any] | None = None  # that follows; None: the episode is over
    insight: Mapping[str, np.ndarray[Any, Any]] = {}  # as `Agent.insight`, of this one
    ended: str = ""  # how it ended


class Row(NamedTuple):
    """A labelled bar from ``start`` to ``end``, in [0, 1] of the bars' width."""

    label: str
    start: float
    end: float
    text: str
    chosen: bool = False


class Panel:
    """Draws the moments of one episode, in order: scales cover what was seen so far.

    Args:
        title: the panel's first line.
        space: that the agent acts in.
        names: of the actions of a Discrete space, or of the numbers of another action.
    """

    def __init__(self, title: str, space: Any, names: Sequence[str]) -> None:
        self.title, self.space, self.names = title, space, names
        self.spreads: deque[float] = deque(maxlen=HISTORY)  # how far values were from their state's mean
        self.curve: deque[float] = deque(maxlen=HISTORY)
        self.last: tuple[str, list[Row]] = ("", [])

    def beside(self, moment: Moment) -> np.ndarray[Any, Any]:
        """Return the picture with the panel at its right, (H', W', 3) uint8; both sides even, as films want them."""
        picture = moment.picture
        factor = -(-LOWEST // len(picture))
        if factor > 1:
            picture = picture.repeat(factor, 0).repeat(factor, 1)
        height, width = (size - size % 2 for size in picture.shape[:2])
        return np.hstack([picture[:height, :width], self.draw(moment, height)])

    def draw(self, moment: Moment, height: int) -> np.ndarray[Any, Any]:
        """Return the panel (height, WIDTH, 3) uint8."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (WIDTH, height), PAPER)
        canvas = ImageDraw.Draw(image)
        canvas.line((0, 0, 0, height), TRACK)
        canvas.text((_EDGE, 8), self.title, FAINT, _font(12))
        canvas.text((_EDGE, 28), "return", FAINT, _font(13))
        canvas.text((_EDGE + 50, 22), _total(moment.total), INK, _font(22))
        canvas.text((WIDTH - _EDGE, 28), f"step {moment.step}", INK, _font(14), anchor="ra")
        canvas.text((WIDTH - _EDGE, 48), moment.ended, CHOSEN, _font(13), anchor="ra")
        if moment.action is not None:
            self.last = self.rows(moment.action, moment.insight)
        used = self._bars(canvas, height - _CURVE[0])
        self._curve(canvas, moment, max(used + 10, height - _CURVE[1]), height)
        return np.asarray(image)

    def rows(self, action: np.ndarray[Any, Any], insight: Mapping[str, np.ndarray[Any, Any]]) -> tuple[str, list[Row]]:
        """Return what the bars show, and the bars: Q-values about their mean, else probabilities, else the action."""
        if isinstance(self.space, spaces.Discrete):
            if "q" in insight:
                return "Q-values; bars: from their mean", self._values(insight["q"], int(action))
            shares = insight.get("probabilities", np.eye(len(self.names))[int(action)])
            heading = "probabilities" if "probabilities" in insight else "action"
            rows = zip(self.names, shares.tolist(), strict=True)
            return heading, [Row(n, 0, p, f"{p:.3f}", i == action) for i, (n, p) in enumerate(rows)]
        flat = action.ravel().tolist()
        if not isinstance(self.space, spaces.Box):
            return "action", [Row(n, 0, 0, str(a), True) for n, a in zip(self.names, flat, strict=True)]
        edges = zip(self.space.low.ravel().tolist(), self.space.high.ravel().tolist(), strict=True)
        return "action", [_number(*row) for row in zip(self.names, flat, edges, strict=True)]

    def _values(self, q: np.ndarray[Any, Any], action: int) -> list[Row]:
        """Return bars of how much more or less than their mean values are; forbidden actions have none.

        Values of one state are close to each other beside those of other states: what decides is their difference.
        """
        allowed, finite = ~(q <= np.finfo(np.float32).min), np.isfinite(q)  # an agent that diverged is shown, too
        known = q.astype(np.float64)[allowed & finite]
        more = np.where(allowed & finite, q - (known.mean() if known.size else 0.0), 0.0)
        self.spreads.append(float(np.abs(more).max()))
        share = 0.5 + 0.5 * more / max(*self.spreads, 1e-9)
        cells = zip(self.names, share.tolist(), q.tolist(), allowed.tolist(), strict=True)
        return [Row(n, 0.5, x, f"{v:.2f}" if ok else "-", i == action) for i, (n, x, v, ok) in enumerate(cells)]

    def _bars(self, canvas: Any, bottom: int) -> int:
        """Draw the bars above ``bottom``; return where they end."""
        heading, rows = self.last
        canvas.text((_EDGE, _TOP - 18), heading, FAINT, _font(13))
        room = bottom - _TOP
        most = room // 15
        if len(rows) > most:  # the likeliest ones, in their order
            kept = sorted(rows, key=lambda row: (row.chosen, row.end), reverse=True)[:most]
            rows = [row for row in rows if row in kept]
        height = min(26, room // max(1, len(rows)))
        font, left, wide = _font(12 if height < 18 else 14), _BAR[0], _BAR[1] - _BAR[0]
        for i, row in enumerate(rows):
            y, middle = _TOP + i * height, _TOP + i * height + height // 2
            colour = CHOSEN if row.chosen else OTHER
            if row.chosen and heading != "action":  # of actions that are numbers all are
                canvas.polygon([(2, middle - 5), (2, middle + 5), (9, middle)], fill=CHOSEN)
            canvas.text((_EDGE, middle), _fitted(row.label, font), INK, font, anchor="lm")
            canvas.rectangle((left, y + 3, _BAR[1], y + height - 4), fill=TRACK)
            start, end = (left + round(wide * float(np.nan_to_num(np.clip(at, 0, 1)))) for at in (row.start, row.end))
            canvas.rectangle((min(start, end), y + 3, max(start, end), y + height - 4), fill=colour)
            canvas.text((WIDTH - _EDGE, middle), row.text, INK, font, anchor="rm")
        return _TOP + len(rows) * height

    def _curve(self, canvas: Any, moment: Moment, top: int, bottom: int) -> None:
        """Draw how the value of the state went, or of an agent without values the return."""
        insight, value = moment.insight, moment.total
        name = "return" if not insight or {*insight} == {"probabilities"} else ""
        if "value" in insight:
            name, value = "V(s)", float(insight["value"])
        elif "q" in insight:
            name, value = ("max Q(s, a)" if insight["q"].ndim else "Q(s, a)"), float(insight["q"].max())
        if moment.action is not None:
            self.name = name
            self.curve.extend([value] if np.isfinite(value) else [])
        if not self.curve:
            return
        low, high = min(self.curve), max(self.curve)
        canvas.text((_EDGE, top + 4), f"{self.name}, last {HISTORY} steps", FAINT, _font(13))
        canvas.text((WIDTH - _EDGE, top + 4), f"{self.curve[-1]:.2f}", CURVE, _font(14), anchor="ra")
        left, right, over, under = _EDGE, WIDTH - 56, top + 28, bottom - 14
        canvas.rectangle((left, over - 4, right, under + 4), outline=TRACK)
        for at, edge in ((over, high), (under, low)):
            canvas.text((WIDTH - _EDGE, at), f"{edge:.3g}", FAINT, _font(11), anchor="rm")
        heights = [under - (under - over) * ((x - low) / (high - low) if high > low else 0.5) for x in self.curve]
        room = max(HISTORY // 4, len(heights) - 1)
        points = [(left + i * (right - left) / room, y) for i, y in enumerate(heights)]
        if len(points) > 1:
            canvas.line(points, CURVE, 2)
        canvas.circle(points[-1], 3, CURVE)


def _total(value: float) -> str:
    """Return a sum of rewards with as many digits as there is room for."""
    if not abs(value) < 1e6:  # or it is no number
        return f"{value:.4g}"
    return f"{value:.{0 if value == round(value) else 1 if abs(value) >= 10 else 2}f}"


def _number(name: str, value: float, edges: tuple[float, float]) -> Row:
    """Return the bar of one number of a continuous action, from 0 or the nearest the Box has to it."""
    low, high = edges if np.isfinite(edges).all() else (min(-1.0, value), max(1.0, value))
    start, end = ((min(max(x, low), high) - low) / (high - low) for x in (0.0, value))
    return Row(name, start, end, f"{value:.2f}", True)


@functools.cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


@functools.cache
def _fitted(label: str, font: Any) -> str:
    """Return as much of a label as there is room for."""
    room = _BAR[0] - _EDGE - 6
    while font.getlength(label) > room:
        label = label.removesuffix("…")[:-1] + "…"
    return label
