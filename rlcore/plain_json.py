"""JSON that every reader takes: a number that is not finite, for which JSON has no word, is null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, **layout: Any) -> str:
    """Return a value as JSON; NaN and infinities are null.

    Args:
        value: mappings, lists, tuples, texts, numbers, booleans and None.
        layout: options of `json.dumps`, such as ``indent``.
    """
    return json.dumps(_finite(value), allow_nan=False, **layout)


def loads(text: str) -> Any:
    """Return the value of a JSON text; the NaN and Infinity of other writers are None.

    Raises:
        ValueError: it is no JSON.
    """
    return json.loads(text, parse_constant=lambda _: None)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
