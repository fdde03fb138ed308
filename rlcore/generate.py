"""What ``generate.py`` does: let a run write on from prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.errors import UserError
from rlcore.run import Run, load
from rlcore.seeding import generator


def generate(
    run: str | Path,
    prompts: Sequence[str],
    length: int | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    beam: int = 0,
    stop: Sequence[str] = (),
    seed: int = 0,
    n: int = 1,
    which: str | None = None,
) -> list[list[str]]:
    """Return ``n`` completions of each prompt, without the prompt.

    Args:
        run: a run's folder, or ``latest``; of a language model, seq2seq or grpo.
        prompts: what to go on from.
        length: most tokens of a completion; None: those that the run learnt, of a language model one context.
        temperature: 0: the likeliest token each time; else tokens are drawn.
        top_k: of drawing: from so many likeliest tokens only; 0: from all.
        top_p: of drawing: from the likeliest tokens that reach this probability together.
        beam: width of a search for the likeliest completions; 0: none.
        stop: texts that end a completion; they are left out of it.
        seed: of drawing.
        n: completions of each prompt; of a search the best.
        which: the checkpoint: last, best or a frame; None: as the run's eval.use says.

    Raises:
        UserError: the run writes no text, or a prompt or an option does not fit it.
    """
    require(temperature, top_k, top_p, beam, n)
    if "" in stop:
        raise UserError("stop: got an empty text, expected one that may occur in a completion")
    loaded = load(run, which)
    write, vocabulary = getattr(loaded.agent, "generate", None), getattr(loaded.predictor, "vocabulary", None)
    if write is None or vocabulary is None:
        raise UserError(
            f"{run}: agent '{loaded.config.agent.name}' on '{loaded.config.env.id}' writes no text; "
            "expected a run of a language model, seq2seq or grpo"
        )
    obs = encode(loaded, vocabulary, prompts).to(loaded.config.device)
    single = [ids[0] for ids in vocabulary.ids(stop) if len(ids) == 1]  # what is longer is looked for in the text
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "beam": beam, "n": n}
    with torch.no_grad():
        tokens = write(obs, generator(seed, "generate", obs.device), length, single, **how)  # (B, n, L)
    texts = vocabulary.decode(tokens.flatten(0, 1).cpu())
    cut = [min((text.partition(end)[0] for end in stop), key=len, default=text) for text in texts]
    return [cut[i : i + n] for i in range(0, len(cut), n)]


def require(temperature: float, top_k: int, top_p: float, beam: int, n: int) -> None:
    """Check that the options go together.

    Raises:
        UserError: says which does not.
    """
    drawing = top_k > 0 or top_p != 1
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature: got {temperature:g}, expected 0 or more")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p: got {top_p:g}, expected above 0 and at most 1")
    if beam and (temperature or drawing):
        raise UserError(f"beam: got {beam} with temperature, top_k or top_p, expected one without the others")
    if drawing and not temperature:
        raise UserError("temperature: got 0 with top_k or top_p, expected above 0: else nothing is drawn")
    if n > 1 and not temperature and n > beam:
        raise UserError(f"n: got {n}, expected a temperature above 0 or a beam of at least {n}: else all are the same")


def encode(run: Run, vocabulary: Any, prompts: Sequence[str]) -> Tensor:
    """Return prompts as tokens (B, P), padded on the left.

    Raises:
        UserError: one is empty, too long or not of the run's vocabulary.
    """
    for prompt in prompts:
        found = vocabulary.tokenizer.encode(prompt, add_special_tokens=False)
        pieces = zip(found.ids, found.offsets, strict=True)
        if unknown := [prompt[start:end] for token, (start, end) in pieces if token == vocabulary.unk]:
            some = ", ".join(map(repr, dict.fromkeys(unknown)))
            raise UserError(f"prompt '{prompt[:40]}': got {some}, expected only what {run.path} knows from training")
        if not found.ids:
            raise UserError("prompt: got an empty text, expected at least one token to go on from")
    if isinstance(run.spec.action_space, spaces.Box):  # a language model, whose predictor shortens long texts
        ids = vocabulary.ids(prompts)
        return vocabulary.fill(ids, max(map(len, ids)), "left")
    assert run.predictor is not None
    return run.predictor.encode(prompts)[0]
