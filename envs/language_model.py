"""Language modelling as a one-step task: the observation is a window of tokens, the action predicts each one's next.

    reward of a window = sum_t log softmax(z_t)[x_{t+1}],     perplexity = exp(- sum of rewards / tokens)

    bits per character = (- sum of rewards / tokens) * (tokens / characters of the split) / ln 2

The text is split in order: its end is the test split, what comes before it the validation split; with a test fraction
of 0 the test split is the validation split. Training windows start at every token. Held-out windows lie side by side
and predict every token of their split exactly once, its first one from the tokens before the split; the places of the
last window that are left over do not count.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from pydantic import Field, model_validator
from torch import Tensor

from envs import metrics
from envs.one_step import OneStep, OneStepTask
from envs.options import validated
from envs.texts import IGNORE, TokenCriterion, VocabularyConfig, read_text, remarks
from envs.vocabulary import Vocabulary, resolve
from rlcore.errors import UserError
from rlcore.spaces import Tokens
from rlcore.types import Example, Spec
from rlcore.vector import Autoreset, Split


class LanguageModelConfig(VocabularyConfig):
    """Keywords of `LanguageModel`."""

    data: str = Field(default="shakespeare", description="a text file (UTF-8, gzipped or not), or 'shakespeare'")
    tokens: str = Field(
        default="chars",
        description="chars, bpe, wordpiece or words, learnt from the training split; or the folder of a pretrained one",
    )
    context: int = Field(default=64, ge=1, description="tokens in a window")
    val_fraction: float = Field(default=0.1, gt=0, lt=1, description="of the text, after what is trained on")
    test_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="of the text, at its end; 0: the validation split is the test split, too"
    )

    @model_validator(mode="after")
    def _leaves_some(self) -> LanguageModelConfig:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction below 1")
        return self


class Corpus(NamedTuple):
    """A text as tokens, by split."""

    vocabulary: Vocabulary
    ids: dict[str, Tensor]  # (n,) int32; of a held-out split after the token before it
    characters: dict[str, int]


@functools.lru_cache(maxsize=1)  # a run builds several environments of one text, one a split
def prepare(text: str, settings: str) -> Corpus:
    """Split a text, learn the vocabulary from what is trained on, and return the tokens of each split.

    Raises:
        UserError: as `resolve`, or a split is empty.
    """
    config = LanguageModelConfig.model_validate_json(settings)
    tested = config.test_fraction
    start, end = (int(len(text) * (1 - held)) for held in (config.val_fraction + tested, tested))
    parts = {"train": text[:start], "validation": text[start:end], "test": text[end if tested else start :]}
    vocabulary = resolve(config.tokens, config.vocabulary_size, [parts["train"]], config.vocabulary)
    ids = {
        name: torch.tensor(found, dtype=torch.int32)
        for name, found in zip(parts, vocabulary.ids([*parts.values()]), strict=True)
    }
    for name, found in ids.items():
        if not len(found):
            raise UserError(f"{config.data}: the {name} split is empty, {len(text)} characters are too few")
    before = {"validation": ids["train"][-1:], "test": ids["validation" if tested else "train"][-1:]}
    ids |= {name: torch.cat([token, ids[name]]) for name, token in before.items()}
    return Corpus(vocabulary, ids, {name: len(part) for name, part in parts.items()})


class LanguageTask(OneStepTask):
    """Windows of one split, gathered from its tokens, which are in memory once."""

    outcomes = frozenset({"nll", "tokens", "correct"})

    def __init__(self, corpus: Corpus, config: LanguageModelConfig, split: Split, device: str | torch.device) -> None:
        self.spec, self.criterion = specify(corpus.vocabulary, config)
        self.pad, length, ids = corpus.vocabulary.pad, config.context, corpus.ids[split].to(device)
        places = len(ids) - 1  # tokens that are predicted
        if split == "train":
            if places < length:
                raise UserError(
                    f"{config.data}: got {len(ids)} tokens to train on, expected more than the context of {length}"
                )
            self.windows = ids.unfold(0, length + 1, 1)  # (size, T + 1), a view
        else:
            ids = torch.cat([ids, ids.new_full((-places % length,), IGNORE)])
            self.windows = ids.unfold(0, length + 1, length)
        self.size = len(self.windows)
        self.per_character = places / corpus.characters[split]  # tokens

    def draw(self, index: Tensor) -> Example:
        """Return windows (B, T) and the tokens that follow each of theirs (B, T), `IGNORE` beyond the split's end."""
        window = self.windows.index_select(0, index).long()  # (B, T + 1)
        return Example(window[:, :-1].masked_fill(window[:, :-1] == IGNORE, self.pad), window[:, 1:])

    def reward(self, action: Tensor, target: Tensor, /) -> Tensor:
        """Return the log-likelihood (B,) of the targets (B, T) under logits (B, T, V), in nats."""
        return self.criterion.reward(action, target)

    def outcome(self, action: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return each window's negative log-likelihood, how many of its tokens count, and how many are predicted."""
        return {
            "nll": -self.reward(action, target),
            "tokens": (target != IGNORE).sum(1),
            "correct": (action.argmax(-1) == target).sum(1),
        }

    def metrics(self, outcomes: dict[str, Tensor]) -> dict[str, float]:
        """Return loss (nats a token), perplexity, bits_per_character and accuracy."""
        return metrics.language(**outcomes, per_character=self.per_character)


def specify(vocabulary: Vocabulary, config: LanguageModelConfig) -> tuple[Spec, TokenCriterion]:
    """Return the spaces of the task, with its loss, and the criterion behind it."""
    criterion = TokenCriterion()
    obs_space = Tokens(vocabulary.size, config.context, vocabulary.pad, vocabulary.bos, vocabulary.eos)
    action_space = spaces.Box(-np.inf, np.inf, (config.context, vocabulary.size), np.float32)
    return Spec(obs_space, action_space, loss=criterion.loss), criterion


class NextToken:
    """Predicts the likeliest token after each text, from a saved vocabulary alone."""

    def __init__(self, vocabulary: Vocabulary, config: LanguageModelConfig) -> None:
        self.vocabulary, self.length, self.spec = vocabulary, config.context, specify(vocabulary, config)[0]

    def read(self, words: Sequence[str]) -> list[str]:
        """Return the words as texts."""
        return list(words)

    def encode(self, inputs: Sequence[str]) -> tuple[Tensor, list[str]]:
        """Return the last tokens (B, T) of each text, at most as many as the context has, and remarks.

        Raises:
            UserError: there are no texts, one is empty, or they are not of one length: windows hold no padding.
        """
        ids = self.vocabulary.ids([inputs] if isinstance(inputs, str) else inputs)
        if not ids or not all(ids):
            raise UserError("texts: got none, or an empty one, expected some text to continue")
        lengths = {min(len(text), self.length) for text in ids}
        if len(lengths) > 1:
            raise UserError(f"texts: got {len(ids)} of different lengths, expected one, or several of equal length")
        return self.vocabulary.fill(ids, lengths.pop(), "left"), remarks(ids, self.length, self.vocabulary)

    def decode(self, action: Tensor) -> list[str]:
        """Return the likeliest next tokens of logits (B, T, V) as text."""
        return self.vocabulary.decode(action[:, -1].argmax(-1, keepdim=True))


class LanguageModel(OneStep):
    """Predict each next token of a text. Keywords: `LanguageModelConfig`.

    Raises:
        UserError: a keyword is unknown or of the wrong kind, or the text cannot be used as asked.
    """

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device = "cpu",
        split: Split = "train",
        autoreset: Autoreset = "same_step",
        **kwargs: Any,
    ) -> None:
        self.config = validated(LanguageModelConfig, kwargs)
        self.corpus = prepare(read_text(self.config.data), self.config.model_dump_json())
        super().__init__(LanguageTask(self.corpus, self.config, split, device), num_envs, device, split, autoreset)

    def fitted(self) -> dict[str, Any]:
        """Return the keyword ``vocabulary`` that makes another instance read as this one does."""
        return {"vocabulary": self.corpus.vocabulary.state()}

    def report(self) -> tuple[dict[str, Any], str]:
        """Return the size of each split, in characters and in tokens, as a dict and as text."""
        vocabulary, data = self.corpus.vocabulary, self.config.data
        parts = {
            name: {
                "characters": self.corpus.characters[name],
                "tokens": len(ids) - (name != "train"),
                "unknown": int((ids == vocabulary.unk).sum()),
            }
            for name, ids in self.corpus.ids.items()
        }
        lines = [
            f"  {name}: {n['characters']} characters, {n['tokens']} tokens, {n['unknown']} unknown"
            for name, n in parts.items()
        ]
        values = {"source": data, "vocabulary": vocabulary.size, "parts": parts}
        return values, "\n".join([f"{data}: {vocabulary.size} tokens in the vocabulary ({self.config.tokens})", *lines])

    @classmethod
    def predictor(cls, kwargs: Mapping[str, Any]) -> NextToken:
        """Return what continues new texts, from the environment's keywords and what ``fitted`` returned."""
        config = validated(LanguageModelConfig, kwargs)
        return NextToken(Vocabulary.from_state(config.vocabulary or {}), config)
