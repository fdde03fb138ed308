"""What ``predict.py`` does: read inputs as they stand on a command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlcore.errors import UserError
from rlcore.run import load


def predict(run: str | Path, inputs: Sequence[str], which: str | None = None) -> tuple[list[Any], list[str]]:
    """Return predictions and remarks for a CSV file, the NAME=VALUE pairs of one row, or observations in JSON.

    Raises:
        UserError: the inputs are none of these, or do not fit the run.
    """
    loaded = load(run, which)
    if loaded.predictor is None:
        return loaded.predict([_observation(text) for text in inputs])
    if len(inputs) == 1 and "=" not in inputs[0]:
        return loaded.predict(Path(inputs[0]))
    row: dict[str, str] = {}
    for text in inputs:
        name, equals, value = text.partition("=")
        if not equals or name in row:
            expected = "every name once" if equals else "a CSV file alone, or NAME=VALUE pairs of one row"
            raise UserError(f"input '{text}': expected {expected}")
        row[name] = value
    return loaded.predict([row])


def _observation(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise UserError(f"input '{text}': expected an observation in JSON, such as '[0.1, 0, -0.2, 0]'") from None
