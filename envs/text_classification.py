"""Classification of texts as a one-step task: the observation is a text's tokens, the action its label's logits.

    one label a text:   reward = log softmax(z)[y], the target smoothed by ``label_smoothing``
    several labels:     reward = mean over labels of  y log s(z) + (1 - y) log(1 - s(z)),  s the logistic function
    bandit:             the action is a label; reward = 1 if it is the right one, else 0

What is left out of the data, and how they are split: `envs.labelled_texts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional as F

from envs.classification import Classification
from envs.labelled_texts import Labelled, TextClassificationConfig, encoded, prepare
from envs.one_step import OneStep
from envs.options import validated
from envs.table import from_rows, read
from envs.texts import TokenAugmenter, remarks, words_or_file
from envs.vocabulary import Vocabulary
from rlcore.errors import UserError
from rlcore.spaces import Tokens
from rlcore.types import Example, Spec
from rlcore.vector import Autoreset, Split


class TextTask(Classification):
    """Texts of one split as tokens, in memory on the device."""

    def __init__(
        self, data: Labelled, config: TextClassificationConfig, split: Split, device: str | torch.device
    ) -> None:
        rows = data.parts[split]
        if not len(rows):
            raise UserError(f"{data.name}: the {split} split is empty, {len(data.texts)} texts are too few")
        self.data, self.rows, self.config, self.size = data, rows, config, len(rows)
        self.classes = data.labels
        self.spec = specify(data.vocabulary, data.labels, config)
        self._tokens = data.tokens[torch.from_numpy(rows)].to(device)  # (size, length)
        self._target = data.target[torch.from_numpy(rows)].to(device)  # (size,) or (size, C)
        self._augmenter = TokenAugmenter(config.augment, data.vocabulary) if config.augment else None

    def draw(self, index: Tensor) -> Example:
        """Return tokens (B, length) and labels (B,), or several (B, C), at ``index`` (B,) int64."""
        return Example(self._tokens.index_select(0, index).long(), self._target.index_select(0, index))

    @property
    def augments(self) -> bool:
        """Whether the keyword ``augment`` says anything."""
        return self._augmenter is not None

    def augment(self, data: Example, generator: torch.Generator) -> Example:
        """Return the examples with their tokens varied as the keyword ``augment`` says."""
        return data if self._augmenter is None else data._replace(obs=self._augmenter(data.obs, generator))

    def reward(self, action: Tensor, target: Tensor, /) -> Tensor:
        """Return minus the loss of logits (B, C), or 1 for a right label (B,) and 0 for a wrong one."""
        if self.config.bandit:
            return (action == target).float()
        return -each(action, target, self.config.label_smoothing)

    def item(self, row: int) -> str:
        """Return the text."""
        return self.data.texts[self.rows[row]]


def each(logits: Tensor, label: Tensor, smoothing: float) -> Tensor:
    """Return the losses (B,) of logits (B, C) where labels (B,), or several (B, C), are true."""
    if label.dim() == 1:
        return F.cross_entropy(logits, label, reduction="none", label_smoothing=smoothing)
    smooth = label * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(1)


def specify(vocabulary: Vocabulary, labels: Sequence[str], config: TextClassificationConfig) -> Spec:
    """Return the spaces, with the loss where actions are logits."""
    obs_space = Tokens(vocabulary.size, config.length, vocabulary.pad, vocabulary.bos, vocabulary.eos)
    if config.bandit:
        return Spec(obs_space, spaces.Discrete(len(labels)))

    def loss(logits: Tensor, target: Tensor) -> tuple[Tensor, int]:
        return each(logits, target, config.label_smoothing).sum(), len(logits)

    return Spec(obs_space, spaces.Box(-np.inf, np.inf, (len(labels),), np.float32), loss=loss)


class TextPredictor:
    """Labels new texts from a saved vocabulary and saved labels alone."""

    def __init__(self, vocabulary: Vocabulary, labels: list[str], config: TextClassificationConfig) -> None:
        self.vocabulary, self.labels, self.config = vocabulary, labels, config
        self.spec = specify(vocabulary, labels, config)

    def read(self, words: Sequence[str]) -> Path | list[str] | list[dict[str, str]]:
        """Return texts, pairs of texts that follow one another, or the path of a file that holds them.

        Raises:
            UserError: a pair lacks its second text.
        """
        given = words_or_file(words)
        if isinstance(given, Path) or not self.config.pair:
            return given
        if len(given) % 2:
            raise UserError(f"new texts: got {len(given)}, expected pairs of one '{self.config.text}' and one "
                            f"'{self.config.pair}'")  # fmt: skip
        return [dict(zip(self.config.columns, pair, strict=True)) for pair in zip(given[::2], given[1::2], strict=True)]

    def encode(self, inputs: str | Path | Sequence[str] | Sequence[Mapping[str, object]]) -> tuple[Tensor, list[str]]:
        """Return tokens (B, length) of texts, of the rows of a CSV file, or of {column: text} mappings; and remarks.

        Raises:
            UserError: there are none, the file cannot be read, or it lacks a column of texts.
        """
        columns, length = self.config.columns, self.config.length
        if isinstance(inputs, (str, Path)):
            table = read(inputs)
            sides = [table.column(name) for name in columns]
        else:
            rows = [{columns[0]: row} if isinstance(row, str) else row for row in inputs]
            table = from_rows(rows, columns)
            sides = [table.cells[name] for name in columns]
        tokens, ids = encoded(self.vocabulary, sides, length)
        return tokens, remarks(ids, length - 2, self.vocabulary)

    def names(self, inputs: Any, obs: Tensor) -> list[list[str]]:
        """Return the tokens of each text (B, length), padding included."""
        return [[str(self.vocabulary.tokenizer.id_to_token(i)) for i in row] for row in obs.tolist()]

    def decode(self, action: Tensor) -> list[Any]:
        """Return B labels; where texts have several, B lists of those likelier to hold than not."""
        if self.config.separator:
            return [[name for name, z in zip(self.labels, row, strict=True) if z > 0] for row in action.tolist()]
        return [self.labels[i] for i in (action if self.config.bandit else action.argmax(-1)).tolist()]


class TextClassification(OneStep):
    """Predict the label, or several, of a text. Keywords: `TextClassificationConfig`.

    Raises:
        UserError: a keyword is unknown or of the wrong kind, or the texts cannot be used as asked.
    """

    has_folds = True
    names_rows = True

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device = "cpu",
        split: Split = "train",
        autoreset: Autoreset = "same_step",
        **kwargs: Any,
    ) -> None:
        config = validated(TextClassificationConfig, kwargs)
        file = Path(config.data)
        stamp = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None
        self.data = prepare(stamp, config.model_copy(update={"augment": []}).model_dump_json())
        super().__init__(TextTask(self.data, config, split, device), num_envs, device, split, autoreset)

    def fitted(self) -> dict[str, Any]:
        """Return the keywords ``vocabulary`` and ``labels`` that make another instance encode as this one does."""
        return {"vocabulary": self.data.vocabulary.state(), "labels": self.data.labels}

    def report(self) -> tuple[dict[str, Any], str]:
        """Return what was used of the data, as a dict and as text."""
        data, counts = self.data, self.data.counts
        parts = {name: {"texts": len(rows), "labels": self._labels(rows)} for name, rows in data.parts.items()}
        values = {"source": data.name, **counts, "vocabulary": data.vocabulary.size, "parts": parts}
        lines = [
            f"{data.name}: {counts['rows']} rows; left out: {counts['missing']} without text or label, "
            f"{counts['duplicates']} with the text of another ({counts['conflicting']} under another label)",
            f"  {data.vocabulary.size} tokens in the vocabulary; {counts['cut']} texts cut to {data.tokens.shape[1]}",
        ]
        for name, part in parts.items():
            shares = ", ".join(f"{label} {count}" for label, count in part["labels"].items())
            lines.append(f"  {name}: {part['texts']} texts; {shares}")
        return values, "\n".join(lines)

    def _labels(self, rows: np.ndarray) -> dict[str, int]:
        target = self.data.target[torch.from_numpy(rows)]
        held = target.sum(0) if target.dim() == 2 else torch.bincount(target, minlength=len(self.data.labels))
        return {label: int(count) for label, count in zip(self.data.labels, held.tolist(), strict=True)}

    @classmethod
    def predictor(cls, kwargs: Mapping[str, Any]) -> TextPredictor:
        """Return what labels new texts, from the environment's keywords and what ``fitted`` returned."""
        config = validated(TextClassificationConfig, kwargs)
        return TextPredictor(Vocabulary.from_state(config.vocabulary or {}), config.labels or [], config)
