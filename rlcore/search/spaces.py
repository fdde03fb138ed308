"""What a search varies: dotted settings with ranges, choices and conditions. Imports neither torch nor Optuna.

optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}      # a number, uniform in its logarithm
agent.n_step: {low: 1, high: 9, step: 2}              # whole, where both ends (and the step) are
agent.target: {choices: [hard, polyak]}               # anything, lists and mappings too
agent.tau: {low: 0.001, high: 0.1, log: true, when: {agent.target: polyak}}  # else the recipe's own
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from rlcore import config as configs
from rlcore import plain_yaml
from rlcore.errors import UserError, nearest
from rlcore.fields import Model, explain

Number = int | float
_MOST = 512  # corners that are looked at; of more, a sample
_MEASURES = ("seed", "recipe", "init", "budget.frames", "eval", "stop", "log", "checkpoint")
ABSENT: Any = object()


class Dimension(Model):
    """One setting that varies."""

    low: Number | None = Field(default=None, description="smallest value")
    high: Number | None = Field(default=None, description="largest value")
    log: bool = Field(default=False, description="uniform in the logarithm")
    step: Number | None = Field(default=None, gt=0, description="distance between values, from low on")
    choices: list[Any] | None = Field(default=None, min_length=1, description="instead of a range: the values")
    when: dict[str, Any] = Field(default={}, description="varies only where other settings have these values")

    def model_post_init(self, _: Any) -> None:
        """Check what single fields cannot."""
        ends = (self.low, self.high)
        if (self.choices is None) == (None in ends) or (self.choices is not None and ends != (None, None)):
            raise ValueError("either low and high, or choices")
        if self.choices is not None:
            if self.log or self.step is not None:
                raise ValueError("neither log nor step beside choices")
            if len({label(choice) for choice in self.choices}) < len(self.choices):
                raise ValueError("choices that differ")
        elif self.low >= self.high or (self.log and self.low <= 0):  # type: ignore[operator]
            raise ValueError("low below high" + ", and above 0 with log" * self.log)
        elif self.log and self.step is not None:
            raise ValueError("either log or step")

    @property
    def whole(self) -> bool:
        """Whether all values of a range are integers."""
        return all(isinstance(x, int) for x in (self.low, self.high, self.step) if x is not None)

    def values(self) -> list[Any]:
        """Return all values, of a range those at its steps; empty: a range without steps."""
        if self.choices is not None:
            return self.choices
        step = self.step or (1 if self.whole and not self.log else None)
        if step is None:
            return []
        count = math.floor((self.high - self.low) / step + 1e-9) + 1  # type: ignore[operator]
        return [self.low + i * step for i in range(count)]  # type: ignore[operator]

    def holds(self, value: Any) -> bool:
        """Whether the value is one of those that may be drawn."""
        if self.choices is not None:
            return label(value) in map(label, self.choices)
        if not isinstance(value, Number) or isinstance(value, bool) or not self.low <= value <= self.high:  # type: ignore[operator]
            return False
        at_steps = self.values()
        return any(math.isclose(value, x) for x in at_steps) if at_steps else not self.whole or isinstance(value, int)

    def ends(self) -> list[Any]:
        """Return the values that a corner of the space may have: both ends, or every choice."""
        values = self.values()
        return self.choices or [self.low, values[-1] if values else self.high]


def label(choice: Any) -> str | Number | bool | None:
    """Return how the storage keeps a choice: itself, or a list or a mapping as JSON."""
    return json.dumps(choice) if isinstance(choice, (list, dict)) else choice


@dataclass(frozen=True)
class Space:
    """Dimensions by dotted name, those that others depend on first, and the settings of the recipe they vary."""

    name: str
    dimensions: dict[str, Dimension]
    base: dict[str, Any]  # complete settings

    def own(self) -> dict[str, Any]:
        """Return the recipe's own values of what varies; those that it does not hold, or the space does not, lack."""
        values = {name: lookup(self.base, name) for name, dimension in self._active({})}
        return {name: value for name, value in values.items() if self.dimensions[name].holds(value)}

    def is_held(self) -> bool:
        """Whether the recipe itself is a point of the space."""
        return len(self.own()) == sum(1 for _ in self._active({}))

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Return settings as an Optuna trial has or draws them."""
        chosen: dict[str, Any] = {}
        for name, dimension in self._active(chosen):
            if dimension.choices is not None:
                labels = [label(choice) for choice in dimension.choices]
                chosen[name] = dimension.choices[labels.index(trial.suggest_categorical(name, labels))]
                continue
            low, high = dimension.ends()
            if dimension.whole:
                step = int(dimension.step or 1)
                chosen[name] = trial.suggest_int(name, low, high, step=step, log=dimension.log)
            else:
                chosen[name] = trial.suggest_float(name, low, high, step=dimension.step, log=dimension.log)
        return chosen

    def grid(self) -> list[dict[str, Any]]:
        """Return every point of the space.

        Raises:
            UserError: a range has no steps.
        """
        for name, dimension in self.dimensions.items():
            if not dimension.values():
                raise UserError(f"space {self.name}: {name} has no step; expected a step or choices with sampler grid")
        return self._points({name: dimension.values() for name, dimension in self.dimensions.items()})

    def corners(self) -> list[dict[str, Any]]:
        """Return the points with an end of every range and any choices; where they are many, a sample with each end."""
        ends = {name: dimension.ends() for name, dimension in self.dimensions.items()}
        if math.prod(map(len, ends.values())) <= _MOST:
            return self._points(ends)
        rng = np.random.default_rng(0)
        drawn: list[dict[str, Any]] = []
        for name in ends:
            for end in ends[name]:
                others = {other: [values[rng.integers(len(values))]] for other, values in ends.items()}
                drawn += self._points({**others, name: [end]})
        every = ({name: [values[rng.integers(len(values))]] for name, values in ends.items()} for _ in range(_MOST))
        return [*drawn, *itertools.chain.from_iterable(map(self._points, every))]

    def _points(self, values: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
        """Return the product, without what does not vary there, every point once."""
        found: dict[str, dict[str, Any]] = {}
        for product in itertools.product(*(values[name] for name in self.dimensions)):
            point = dict(zip(self.dimensions, product, strict=True))
            chosen: dict[str, Any] = {}
            for name, _ in self._active(chosen):
                chosen[name] = point[name]
            found[json.dumps(chosen, sort_keys=True)] = chosen
        return list(found.values())

    def _active(self, chosen: Mapping[str, Any]) -> Iterator[tuple[str, Dimension]]:
        """Yield the dimensions whose conditions hold for what is chosen meanwhile, or else is the recipe's own."""
        for name, dimension in self.dimensions.items():
            held = {other: chosen.get(other, lookup(self.base, other)) for other in dimension.when}
            if all(label(held[other]) in map(label, _several(wanted)) for other, wanted in dimension.when.items()):
                yield name, dimension

    def check(self) -> None:
        """Try the corners of the space on the settings' own rules.

        Raises:
            UserError: a setting is not known, or a corner is refused.
        """
        for point in self.corners():
            self._check(point)

    def _check(self, point: Mapping[str, Any]) -> None:
        try:
            configs.validate(configs.override(self.base, point))
        except UserError as error:
            where = ", ".join(f"{name}={json.dumps(value)}" for name, value in point.items())
            raise UserError(f"space {self.name}: {error} (at {where})") from None


def _several(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def lookup(tree: Mapping[str, Any], dotted: str) -> Any:
    """Return the value of a dotted setting in nested settings, ABSENT where there is none."""
    value: Any = tree
    for key in dotted.split("."):
        value = value.get(key, ABSENT) if isinstance(value, Mapping) else ABSENT
    return value


def folder() -> Path:
    """Return the folder of the shipped spaces: in a checkout beside the packages, in an installation inside."""
    recipes = configs.recipes()
    return recipes.parent / ("spaces" if recipes.name == "configs" else "search_spaces")


def read(source: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name and the raw dimensions of a shipped space's bare name, a YAML file, or a mapping.

    Raises:
        UserError: there is no such space, or it holds no dimensions.
    """
    if isinstance(source, Mapping):
        return "given", dict(source)
    known = {path.stem: path for path in folder().glob("*.yaml")}
    path = Path(source) if Path(source).is_file() else known.get(str(source))
    if path is None:
        raise UserError(f"--space: '{source}' is neither a file nor a shipped space{nearest(str(source), known)}")
    raw = plain_yaml.read(path)
    if not isinstance(raw, dict) or not raw:
        raise UserError(
            f"space {path}: expected settings with their ranges, such as optim.lr: {{low: 1e-4, high: 1e-2}}"
        )
    return str(source), raw


def build(name: str, raw: Mapping[str, Any], base: Mapping[str, Any]) -> Space:
    """Return the validated space over complete settings.

    Raises:
        UserError: one sentence naming the setting and what was expected.
    """
    dimensions = {str(setting): _dimension(name, str(setting), options) for setting, options in raw.items()}
    ordered: dict[str, Dimension] = {}
    while len(ordered) < len(dimensions):
        ready = [n for n in dimensions if n not in ordered and not {*dimensions[n].when} & {*dimensions} - {*ordered}]
        if not ready:
            circle = ", ".join(n for n in dimensions if n not in ordered)
            raise UserError(f"space {name}: the conditions of {circle} go in a circle")
        ordered |= {n: dimensions[n] for n in ready}
    for setting, dimension in dimensions.items():
        for other in dimension.when:
            if other not in dimensions and lookup(base, other) is ABSENT:
                known = {*dimensions, *configs.flatten(base)}
                raise UserError(f"space {name}: {setting}.when: {other} is not a setting here{nearest(other, known)}")
    return Space(name, ordered, dict(base))


def _dimension(space: str, setting: str, options: Any) -> Dimension:
    if any(f"{setting}.".startswith(f"{part}.") for part in _MEASURES):
        raise UserError(
            f"space {space}: {setting} says how a run is measured; expected settings that training depends on"
        )
    if not isinstance(options, Mapping):
        raise UserError(
            f"space {space}: {setting}: got {options!r}, expected {{low: A, high: B}} or {{choices: [...]}}"
        )
    try:
        return Dimension.model_validate(options)
    except ValidationError as error:
        raise UserError(f"space {space}: {explain(error, Dimension, setting + '.')}") from None
