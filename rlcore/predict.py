"""What ``predict.py`` does: read inputs as they stand on a command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlcore.errors import UserError
from rlcore.run import load


def predict(run: str | Path, inputs: Sequence[str], which: str | None = None) -> tuple[list[Any], list[str]]:
    """Return predictions and remarks for what the run's predictor reads, or for observations in JSON.

    Raises:
        UserError: the inputs are none of these, or do not fit the run.
    """
    loaded = load(run, which)
    if loaded.predictor is None:
        return loaded.predict([_observation(text) for text in inputs])
    return loaded.predict(loaded.predictor.read(inputs))


def _observation(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise UserError(f"input '{text}': expected an observation in JSON, such as '[0.1, 0, -0.2, 0]'") from None
