"""What tasks over texts share: reading files, splits by hash, the cross-entropy of tokens, augmentation of tokens.

    loss(z, y) = - sum over places t with y_t != ignore of log softmax(z_t)[y_t],    count = number of such places

so that places which do not count add to neither the sum nor what the mean is taken over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from envs.table import PARTS, contents
from envs.vocabulary import Vocabulary
from rlcore.config import Model
from rlcore.errors import UserError

IGNORE = -100  # target of a place that does not count
SHIPPED = {"shakespeare": "shakespeare.txt.gz"}


class VocabularyConfig(Model):
    """Keywords of every task over texts."""

    tokens: str = Field(
        default="wordpiece",
        description="chars, bpe, wordpiece or words, learnt from the training split; or a pretrained one's folder, or "
        "package:NAME of an installed package that holds one",
    )
    vocabulary_size: int = Field(default=8_000, ge=1, description="most tokens to learn, special ones included")
    vocabulary: dict[str, Any] | None = Field(
        default=None, description="a saved run's vocabulary, used as it is instead of learning a new one"
    )


def words_or_file(words: Sequence[str]) -> Path | list[str]:
    """Return the words of a command line as texts, or as the path of a file if they name one alone."""
    return Path(words[0]) if len(words) == 1 and Path(words[0]).is_file() else list(words)


def read_text(path: str) -> str:
    """Return the text of a file (UTF-8, gzipped or not), or the shipped one of a bare name ("shakespeare").

    Lines end in one line feed each, whatever they end in there.

    Raises:
        UserError: the file is absent, unreadable or empty.
    """
    file = Path(str(resources.files("envs") / "data" / SHIPPED[path])) if path in SHIPPED else Path(path)
    if not file.exists():
        raise UserError(f"{path}: there is no such file, expected a text file, or one of: {', '.join(SHIPPED)}")
    text = contents(file, path, "text file").replace("\r\n", "\n")
    if not text.strip():
        raise UserError(f"{path}: the file is empty, expected text")
    return text


def parts_by_hash(texts: Iterable[str], validation: float, test: float) -> dict[str, np.ndarray]:
    """Return sorted indices by part, decided by each text alone: u = blake2b(text) / 2^64 is uniform in [0, 1).

    u < test: test; test <= u < test + validation: validation; else train. Equal texts share a part, and a text keeps
    its part whatever else the data hold.
    """
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    u = np.fromiter((int.from_bytes(digest, "big") for digest in digests), np.float64) / 2**64
    part = (u >= test).astype(int) + (u >= test + validation)  # 0: test, 1: validation, 2: train
    return {name: np.flatnonzero(part == 2 - i) for i, name in enumerate(PARTS)}


def remarks(ids: Sequence[Sequence[int]], length: int, vocabulary: Vocabulary) -> list[str]:
    """Say how many new texts are empty, were cut to so many tokens, or hold what the vocabulary does not know."""
    counts = {
        "are empty": sum(not row for row in ids),
        f"are longer than {length} tokens and were cut": sum(len(row) > length for row in ids),
        "hold tokens unknown to the vocabulary": sum(vocabulary.unk in row for row in ids),
    }
    return [f"{count} of {len(ids)} texts {what}" for what, count in counts.items() if count]


class TokenCriterion:
    """Cross-entropy of tokens as the reward of whole texts, and as the loss that is its exact gradient.

    Args:
        ignore: the target of places that do not count; where targets are padded, the padding.
        label_smoothing: the share of the target that is spread over all tokens (Szegedy et al. 2016).
    """

    def __init__(self, ignore: int = IGNORE, label_smoothing: float = 0.0) -> None:
        self.ignore, self.label_smoothing = ignore, label_smoothing

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every place (B, T), in nats, 0 where it does not count, of logits (B, T, V)."""
        return self._cross_entropy(logits, target, "none").view(target.shape)

    def reward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return minus the summed loss of each text (B,) of logits (B, T, V) and targets (B, T)."""
        return -self.each(logits, target).sum(-1)

    def loss(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return minus the sum of the rewards, (), in one operation, and the number of places that count, ()."""
        return self._cross_entropy(logits, target, "sum"), (target != self.ignore).sum()

    def _cross_entropy(self, logits: Tensor, target: Tensor, reduction: str) -> Tensor:
        return F.cross_entropy(
            logits.flatten(0, -2),
            target.flatten(),
            ignore_index=self.ignore,
            reduction=reduction,
            label_smoothing=self.label_smoothing,
        )


class Augmentation(Model):
    """One way of varying texts at random while training."""

    name: Literal["mask", "delete", "swap", "replace"] = Field(
        default="mask",
        description="mask: by the unknown token; delete: what follows moves up; swap: with a neighbour; "
        "replace: by a token drawn at random",
    )
    p: float = Field(default=0.1, ge=0, le=1, description="how likely each token is to be changed")


class TokenAugmenter:
    """Varies tokens (B, T), padded on the right, at random; padding and special tokens stay what and where they are.

    Where tokens are deleted the text gets shorter: what follows, an end included, moves up, and padding fills the end.

    Raises:
        UserError: tokens are to be masked, and the vocabulary has no unknown token.
    """

    def __init__(self, steps: Sequence[Augmentation], vocabulary: Vocabulary) -> None:
        if vocabulary.unk is None and any(step.name == "mask" for step in steps):
            raise UserError("augment: 'mask' needs an unknown token, which this vocabulary does not have")
        self.steps, self.pad = list(steps), vocabulary.pad
        self.unk = vocabulary.unk if vocabulary.unk is not None else vocabulary.pad
        self.special = torch.tensor(vocabulary.special)
        self.ordinary = torch.tensor(sorted({*range(vocabulary.size)} - {*vocabulary.special}))

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """Return the tokens (B, T) as each step leaves them, in order."""
        for step in self.steps:
            tokens = getattr(self, "_" + step.name)(tokens, step.p, generator)
        return tokens

    def _chosen(self, tokens: Tensor, p: float, generator: torch.Generator) -> Tensor:
        """Return (B, T) bool: ordinary tokens, each with probability p."""
        u = torch.rand(tokens.shape, generator=generator, device=tokens.device)
        return (u < p) & ~torch.isin(tokens, self.special.to(tokens.device))

    def _mask(self, tokens: Tensor, p: float, generator: torch.Generator) -> Tensor:
        return tokens.masked_fill(self._chosen(tokens, p, generator), self.unk)

    def _delete(self, tokens: Tensor, p: float, generator: torch.Generator) -> Tensor:
        gone = self._chosen(tokens, p, generator)
        order = gone.int().argsort(dim=1, stable=True)  # what stays, in order, then what goes
        return tokens.masked_fill(gone, self.pad).gather(1, order)

    def _swap(self, tokens: Tensor, p: float, generator: torch.Generator) -> Tensor:
        """Exchange the members of neighbouring pairs, each pair with probability p, as drawn for its first member."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        start = torch.randint(2, (len(tokens), 1), generator=generator, device=tokens.device)
        first = (place + start) % 2 == 0  # (B, T)
        first[:, -1] = False
        free = ~torch.isin(tokens, self.special.to(tokens.device))
        swapped = self._chosen(tokens, p, generator) & first & free.roll(-1, 1)
        source = place + swapped.long() - swapped.roll(1, 1).long()
        return tokens.gather(1, source)

    def _replace(self, tokens: Tensor, p: float, generator: torch.Generator) -> Tensor:
        ordinary = self.ordinary.to(tokens.device)
        drawn = torch.randint(len(ordinary), tokens.shape, generator=generator, device=tokens.device)
        return torch.where(self._chosen(tokens, p, generator), ordinary[drawn], tokens)
