"""Language models: nanoGPT's small CPU setting."""

from __future__ import annotations

from rlcore.speed.contenders import EAGER
from rlcore.speed.peer import Job
from rlcore.speed.settings import Comparison, Contender, Size

NANOGPT_LOSS = 1.88  # what its README reports for this setting
_FAST_TEXT = {**EAGER, "optim.lr": 4e-3, "optim.betas": [0.9, 0.95], "agent.network.kwargs.norm": "layer_norm"}
_GPT = {"agent.network.kwargs.positions": "learned", "agent.network.kwargs.norm": "layer_norm"}


def language_models(size: Size) -> list[Comparison]:
    """Return tokens a second, and the time to nanoGPT's validation loss."""
    quick = size == "quick"
    settings = {
        "device": "cpu", "compile": "False", "dataset": "shakespeare_char", "eval_iters": 20, "log_interval": 1,
        "block_size": 64, "batch_size": 12, "n_layer": 4, "n_head": 4, "n_embd": 128, "dropout": 0.0,
        "gradient_accumulation_steps": 1, "learning_rate": 1e-3, "min_lr": 1e-4, "beta2": 0.99, "warmup_iters": 100,
    }  # fmt: skip

    def theirs(updates: int, look: int, about: float) -> Contender:
        job = {"updates": updates, "look": look, "tokens": 768, "settings": settings, "text": ""}
        return Contender("nanoGPT train.py", "nanogpt", job, about, needs="nanogpt")

    short, whole, look = (10, 20, 10) if quick else (100, 2_000, 250)
    job: Job = {"config": "shakespeare", "tokens": 64, "text": ""}
    race = [
        Contender("ours, eager", "ours", {**job, "overrides": {**EAGER, **_GPT}, "frames": 12 * short}, 12),
        Contender("ours, eager, `shakespeare`", "ours", {**job, "overrides": EAGER, "frames": 12 * short}, 12),
        theirs(short, 10**9, 14),
    ]
    fast = {"goal": NANOGPT_LOSS, "look": 12 * (10 if quick else 100), "frames": 12 * (20 if quick else 1_000)}
    until = [
        Contender("ours, eager, `shakespeare`, 1,000 updates", "ours", {**job, **fast, "overrides": _FAST_TEXT}, 90),
        theirs(whole, look, 190),
    ]
    about = (
        "4 layers, 4 heads, width 128, context 64, batch 12, no dropout, characters of one text, eager. `shakespeare`, "
        "the recipe, has rotary positions and RMS norm. Evaluations do not count. "
    )
    losses = (
        f"nanoGPT makes its 2,000 updates; ours ends where its validation loss is {NANOGPT_LOSS} or less, looked at "
        "every 100 updates. nanoGPT's losses are means over 20 random batches, ours over the whole validation split. "
        "Ours differs from the recipe by layer norm, a rate of 0.004 and a second beta of 0.95. "
    )
    title = "nanoGPT's small CPU setting"
    return [
        Comparison("nanogpt", "tokens", title, "race", race, 3, "tokens/s", [race[0].name], about),
        Comparison("nanogpt_loss", "loss", "Until its validation loss", "loss", until, 1, "s", about=losses),
    ]
