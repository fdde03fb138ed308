"""Python values as plain, independent copies that a checkpoint can hold, and back."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import numpy as np


class NotCapturable(Exception):
    """A value has no plain form; the message names its type."""


def freeze(value: Any, attribute: bool = False) -> Any:
    """Return a plain copy: numbers, strings, bytes, None and arrays; lists, tuples and dicts of them.

    Generators and deques become marked dicts; with ``attribute``, so does any other object, by its attributes.

    Raises:
        NotCapturable: there is no plain copy of it.
    """
    if value is None or isinstance(value, bool | int | float | str | bytes | np.generic):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return value.copy()
    if type(value) is list:
        return [freeze(item) for item in value]
    if type(value) is tuple:
        return tuple(freeze(item) for item in value)
    if type(value) is deque:
        return {"$deque": [freeze(item) for item in value], "maxlen": value.maxlen}
    if isinstance(value, dict) and all(type(key) in (str, int) for key in value):
        return {"$dict": {key: freeze(item) for key, item in value.items()}}
    if isinstance(value, np.random.Generator):
        return {"$generator": copy.deepcopy(value.bit_generator.state)}
    if attribute and hasattr(value, "__dict__"):
        return {"$object": {name: freeze(item, attribute=True) for name, item in vars(value).items()}}
    raise NotCapturable(f"a {type(value).__module__}.{type(value).__qualname__}")


def thaw(value: Any, into: Any = None) -> Any:
    """Undo `freeze`; the attributes of an object are set on ``into``, an object of its kind."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list | tuple):
        return type(value)(thaw(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "$dict" in value:
        return {key: thaw(item) for key, item in value["$dict"].items()}
    if "$deque" in value:
        return deque((thaw(item) for item in value["$deque"]), value["maxlen"])
    if "$generator" in value:
        bits = getattr(np.random, value["$generator"]["bit_generator"])()
        bits.state = value["$generator"]
        return np.random.Generator(bits)
    for name, item in value["$object"].items():
        setattr(into, name, thaw(item, getattr(into, name, None)))
    return into
