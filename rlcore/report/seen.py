"""What a run's agent shows when it is played: its evaluation, its episodes, its mistakes, what it writes."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore import build, runs
from rlcore.generate import generate
from rlcore.report import drawing
from rlcore.report.drawing import Picture
from rlcore.report.known import Table
from rlcore.run import Run, load
from rlcore.seeding import generator
from rlcore.spaces import Tokens
from rlcore.vector import VectorEnv

MISTAKES = 12
SAMPLES = 8  # held-out prompts whose completions are shown, right or wrong
PICTURES = 12  # of the examples with the least reward
PROMPTS = 3  # that a language model goes on from, for so many contexts
CONTEXTS = 4
TEMPERATURE = 0.8
RESAMPLES = 200
_ALTS = {
    "confusion": "Confusion matrix: how many items of each true class (rows) are given each class (columns).",
    "roc": "ROC curves: true positive rate over false positive rate.",
    "predictions": "Predictions over targets; on the diagonal they are right.",
}


class Seen(NamedTuple):
    """What an evaluation showed.

    Attributes:
        evaluation: as `rlcore.evaluation.evaluate` returns it.
        checkpoint: which checkpoint was played, in words.
        task: whether its episodes are held-out examples.
        intervals: of the task's own metrics, 95 % over resampled examples.
        figures, mistakes, samples, pictures: what the task has of these; empty or None elsewhere.
    """

    evaluation: dict[str, Any]
    checkpoint: str
    task: bool = False
    intervals: dict[str, tuple[float, float]] = {}
    figures: list[Picture] = []
    mistakes: Table | None = None
    samples: Table | None = None
    pictures: list[Picture] = []


def see(folder: Path, name: str, which: str | None, episodes: int | None) -> Seen:
    """Load a run and return what it shows; what result.json says already is not played again.

    Args:
        folder: the run's.
        name: sets its figures' ids apart from other runs'.
        which: the checkpoint: last, best or a frame; None: as the run's eval.use says.
        episodes: of the evaluation; None: the run's eval.final_episodes (tasks: the held-out split).

    Raises:
        UserError: there is no such checkpoint, or what its environment needs is not there.
    """
    run = load(folder, which)
    checkpoint = which or run.config.eval.use
    said = runs.read_json(folder / "result.json").get("evaluation")
    if said and which is None and episodes is None and not _is_task(run):
        return Seen(said, checkpoint)
    found: list[tuple[VectorEnv, dict[str, Tensor]]] = []
    result = run.evaluate(episodes, look=lambda env, outcomes: found.append((env, outcomes)))
    ((env, outcomes),) = found
    with drawing.inked():
        drawn = env.figures(outcomes)
    figures = [
        drawing.inline(figure, f"{name}-{kind}", _ALTS.get(kind, f"Figure of the task: {kind}."), black_is_ink=False)
        for kind, figure in drawn.items()
    ]
    if env.episodes is None:
        return Seen(result, checkpoint, figures=figures)
    return Seen(
        result,
        checkpoint,
        task=True,
        intervals=_intervals(env, outcomes),
        figures=figures,
        mistakes=table(env.mistakes(outcomes, MISTAKES)),
        samples=_samples(run, env, outcomes, which),
        pictures=_pictures(env, outcomes, result["returns"]),
    )


def _is_task(run: Run) -> bool:
    if run.predictor is not None:
        return True
    env = build.env(run.config.env, run.config.device, "test", 1)
    env.close()
    return env.episodes is not None


def _intervals(env: VectorEnv, outcomes: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Return the 95 % percentile bootstrap interval of each of the task's metrics over its E examples."""
    size = len(next(iter(outcomes.values())))
    rng = generator(0, "report")
    drawn: dict[str, list[float]] = {}
    with contextlib.redirect_stderr(io.StringIO()):  # remarks on a resample are none on the run
        for _ in range(RESAMPLES):
            index = torch.randint(size, (size,), generator=rng)
            for name, value in env.metrics({k: v[index.to(v.device)] for k, v in outcomes.items()}).items():
                drawn.setdefault(name, []).append(value)
    ends = {name: np.percentile(values, [2.5, 97.5]) for name, values in drawn.items() if len(values) == RESAMPLES}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def table(markdown: str) -> Table | None:
    """Return the table in a list of mistakes, with the sentence above it; None where there is no text."""
    sentence, _, rest = markdown.partition("\n\n")
    rows = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in rest.splitlines()
    ]
    return Table(sentence, rows[0] if rows else [], rows[2:]) if sentence else None


def _samples(run: Run, env: VectorEnv, outcomes: dict[str, Tensor], which: str | None) -> Table | None:
    """Return completions of held-out prompts, or how a language model goes on; None where no text is written."""
    vocabulary: Any = getattr(run.predictor, "vocabulary", None)
    obs, action = env.spec.obs_space, env.spec.action_space
    if vocabulary is None or not isinstance(obs, Tokens):
        return None
    if {"completion", "target", "row"} <= outcomes.keys() and isinstance(action, Tokens):
        rows = outcomes["row"][:SAMPLES]
        texts = (env.task.draw(rows).obs, outcomes["target"][:SAMPLES], outcomes["completion"][:SAMPLES])
        cells = [vocabulary.decode(tokens.cpu()) for tokens in texts]
        caption = f"The first {len(rows)} of the held-out split, right or wrong:"
        return Table(caption, ["prompt", "target", "completion"], [list(row) for row in zip(*cells, strict=True)])
    if isinstance(action, spaces.Box) and len(action.shape) == 2:
        places = torch.linspace(0, max(0, env.task.size - 2), PROMPTS).long()  # the last window is not full
        prompts = vocabulary.decode(env.task.draw(places.to(env.device)).obs.cpu())
        texts = generate(run.path, prompts, CONTEXTS * obs.length, TEMPERATURE, which=which)
        rows = [[prompt, text] for prompt, (text,) in zip(prompts, texts, strict=True)]
        caption = f"Held-out text, pale, and how the run goes on from it, drawn at temperature {TEMPERATURE}:"
        return Table(caption, ["prompt", "continuation"], rows)
    return None


def _pictures(env: VectorEnv, outcomes: dict[str, Tensor], returns: list[float]) -> list[Picture]:
    """Return the pictures that earned least, the worst first; none where observations are no pictures."""
    space = env.spec.obs_space
    if not (isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3 and "row" in outcomes):
        return []
    from PIL import Image

    worst = np.argsort(returns, kind="stable")[:PICTURES]
    obs = env.task.draw(outcomes["row"][torch.from_numpy(worst).to(env.device)]).obs.cpu().numpy()  # (n, H, W, C)
    drawn = []
    for i, pixels in zip(worst.tolist(), obs, strict=True):
        png = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(png, "PNG")
        words = f"true {_class(env, outcomes['target'][i])}, predicted {_class(env, outcomes['prediction'][i])}"
        drawn.append(Picture(source=drawing.data_uri(png.getvalue(), "image/png"), alt=words, caption=words))
    return drawn


def _class(env: VectorEnv, answer: Tensor) -> str:
    """Return the name of a class (), or of the likeliest of logits (C,)."""
    return str(env.task.classes[int(answer.argmax() if answer.dim() else answer)])
