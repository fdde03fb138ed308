"""What ``predict.py`` does: read inputs as they stand on a command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlcore.errors import UserError
from rlcore.run import Run, load


def predict(run: str | Path, inputs: Sequence[str], which: str | None = None) -> tuple[list[Any], list[str]]:
    """Return predictions and remarks for what the run's predictor reads, or for observations in JSON.

    Raises:
        UserError: the inputs are none of these, or do not fit the run.
    """
    loaded = load(run, which)
    return loaded.predict(_read(loaded, inputs))


def explain(
    run: str | Path, inputs: Sequence[str], to: str | Path, which: str | None = None
) -> tuple[list[Any], list[dict[str, Any]], list[str]]:
    """Draw which parts of the inputs drive the predictions; return predictions, explanations as values, and remarks.

    Raises:
        UserError: as `predict`, `rlcore.explain.explain` and `rlcore.explain_picture.save`.
    """
    path = Path(to)
    if path.suffix not in (".png", ".svg") or not path.absolute().parent.is_dir():
        raise UserError(f"--explain: got '{to}', expected FILE.png or FILE.svg in a folder that exists")
    if find_spec("captum") is None:
        raise UserError("--explain needs captum: pip install 'rlcore[explain]'")
    from rlcore import explain as explaining

    loaded = load(run, which)
    explanations, remarks = explaining.explain(loaded, _read(loaded, inputs))
    explaining.save(explanations, path)
    return [one.prediction for one in explanations], [one.values() for one in explanations], remarks


def _read(run: Run, inputs: Sequence[str]) -> Any:
    if run.predictor is None:
        return [_observation(text) for text in inputs]
    return run.predictor.read(inputs)


def _observation(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise UserError(f"input '{text}': expected an observation in JSON, such as '[0.1, 0, -0.2, 0]'") from None
