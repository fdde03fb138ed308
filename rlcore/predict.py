"""What ``predict.py`` does: read inputs as they stand on a command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlcore.errors import UserError
from rlcore.run import load


def predict(run: str, inputs: Sequence[str], which: str = "last") -> tuple[list[Any], list[str]]:
    """Return predictions and remarks for a CSV file, the NAME=VALUE pairs of one row, or observations in JSON.

    Raises:
        UserError: the inputs are none of these, or do not fit the run.
    """
    loaded = load(run, which)
    if loaded.predictor is not None:
        if len(inputs) == 1 and "=" not in inputs[0]:
            return loaded.predict(Path(inputs[0]))
        pairs = [text.partition("=") for text in inputs]
        if bad := next((name for name, equals, _ in pairs if not equals), None):
            raise UserError(f"input '{bad}': expected a CSV file alone, or NAME=VALUE pairs of one row")
        return loaded.predict([{name: value for name, _, value in pairs}])
    return loaded.predict([_observation(text) for text in inputs])


def _observation(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise UserError(f"input '{text}': expected an observation in JSON, such as '[0.1, 0, -0.2, 0]'") from None
