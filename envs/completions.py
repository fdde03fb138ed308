"""Tasks whose action is a whole completion: a prompt is shown, its answer is written, the answer is rewarded.

An episode is one prompt. With a the tokens written up to their first end, t the labelled answer, ended alike, and both
padded to one length,

    exact   r = 1 if a = t, else 0
    graded  r = |{i : a_i = t_i, not both padding}| / max(|a|, |t|),    1 if and only if a = t

The labelled answers also give the loss of written tokens, `Spec.loss`, so that one task serves those that learn from
examples and those that learn from rewards. While training, environments i * group ... (i + 1) * group - 1 show the same
prompts, those of the first one's seed, so that their completions can be compared.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from envs import mistakes
from envs.one_step import OneStep, OneStepTask
from envs.options import validated
from envs.texts import TokenCriterion, VocabularyConfig, parts_by_hash, read_text, words_or_file
from envs.vocabulary import Vocabulary, resolve
from rlcore.errors import UserError
from rlcore.spaces import Tokens
from rlcore.types import Example, Spec, Step
from rlcore.vector import Autoreset, Split

Pair = tuple[str, str]  # a prompt and its answer


class CompletionConfig(VocabularyConfig):
    """Keywords of every task whose answers are completions."""

    tokens: str = Field(
        default="chars",
        description="one vocabulary for prompts and completions: chars, bpe, wordpiece or words, learnt from the "
        "training split; or a pretrained tokenizer's folder",
    )
    prompt_length: int | None = Field(
        default=None, ge=1, description="tokens of a prompt, its end included; default: the longest's; longer: left out"
    )
    completion_length: int | None = Field(
        default=None, ge=2, description="tokens of a completion, its end included; default and longer ones likewise"
    )
    reward: Literal["exact", "graded"] = Field(
        default="exact", description="exact: 1 if all is right, else 0; graded: the fraction of tokens in their place"
    )
    group: int = Field(default=1, ge=1, description="training: environments next to each other that share a prompt")
    val_fraction: float = Field(default=0.1, ge=0, lt=1, description="fraction of prompts held out to choose models")
    test_fraction: float = Field(default=0.1, ge=0, lt=1, description="fraction of prompts held out to report")

    @model_validator(mode="after")
    def _leaves_some(self) -> CompletionConfig:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction below 1")
        return self


class Prepared(NamedTuple):
    """Prompts and completions of every split as tokens."""

    vocabulary: Vocabulary
    examples: dict[str, Example]  # by split: prompts (n, P), completions (n, L)
    remarks: list[str]  # what was left out

    def spec(self) -> Spec:
        """Return the spaces."""
        prompts, completions = self.examples["train"]
        return completion_spec(self.vocabulary, prompts.shape[1], completions.shape[1])


def completion_spec(vocabulary: Vocabulary, prompt_length: int, completion_length: int) -> Spec:
    """Return the spaces of prompts (P,) and completions (L,) of a vocabulary, and the loss of written tokens."""
    special = {"pad": vocabulary.pad, "bos": vocabulary.bos, "eos": vocabulary.eos}
    return Spec(
        Tokens(vocabulary.size, prompt_length, **special),
        Tokens(vocabulary.size, completion_length, **special),
        loss=TokenCriterion(vocabulary.pad).loss,
    )


def ended(tokens: Tensor, eos: int, pad: int) -> Tensor:
    """Return completions (B, L) with padding after their first end."""
    end = (tokens == eos).long()
    return tokens.masked_fill(end.cumsum(1) > end, pad)


def exact(action: Tensor, target: Tensor) -> Tensor:
    """Return 1 where ended completions (B, L) are the labelled ones, else 0: (B,) float32."""
    return (action == target).all(1).float()


def graded(action: Tensor, target: Tensor, pad: int) -> Tensor:
    """Return the fraction of tokens that are right in their place, of the longer of both completions (B, L): (B,)."""
    token = (action != pad) | (target != pad)
    length = (token.flip(1).cumsum(1) > 0).sum(1)  # of the longer one, padding that was written before an end included
    return ((action == target) & token).sum(1) / length.clamp(min=1)


class CompletionTask(OneStepTask):
    """Prompts and labelled completions of one split, in memory on the device."""

    outcomes = frozenset({"completion", "target", "is_success"})

    def __init__(self, example: Example, spec: Spec, vocabulary: Vocabulary, grade: bool = False) -> None:
        self.prompts, self.completions = example  # (size, P), (size, L)
        self.spec, self.vocabulary, self.grade = spec, vocabulary, grade
        self.size = len(self.prompts)

    def draw(self, index: Tensor) -> Example:
        """Return the prompts (B, P) and completions (B, L) at ``index`` (B,) int64."""
        return Example(self.prompts.index_select(0, index), self.completions.index_select(0, index))

    def end(self, action: Tensor) -> Tensor:
        """Return completions (B, L) with padding after their first end."""
        return ended(action, self.vocabulary.eos, self.vocabulary.pad)

    def reward(self, action: Tensor, target: Tensor, /) -> Tensor:
        """Return what completions (B, L) are worth where ``target`` (B, L) is right: (B,) in [0, 1]."""
        action = self.end(action)
        return graded(action, target, self.vocabulary.pad) if self.grade else exact(action, target)

    def outcome(self, action: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the completion as far as its end (B, L), the target (B, L), and whether they are equal (B,) bool."""
        action = self.end(action)
        return {"completion": action, "target": target, "is_success": exact(action, target) > 0}

    def metrics(self, outcomes: dict[str, Tensor]) -> dict[str, float]:
        """Return exact, the fraction of right completions, and token_accuracy, the mean of the graded rewards."""
        right = graded(outcomes["completion"], outcomes["target"], self.vocabulary.pad)
        return {
            "exact": float(outcomes["is_success"].double().mean()),
            "token_accuracy": float(right.double().mean()),
        }

    def mistakes(self, outcomes: dict[str, Tensor], n: int) -> str:
        """Return the n completions with the fewest tokens right among those that fail, as a Markdown table."""
        written, wanted = outcomes["completion"], outcomes["target"]
        right, failed = graded(written, wanted, self.vocabulary.pad), ~outcomes["is_success"]
        chosen = mistakes.worst(-right, failed, n)
        prompts = self.prompts[outcomes["row"][chosen]]
        texts = (self.vocabulary.decode(tokens) for tokens in (prompts, wanted[chosen], written[chosen]))
        scores = [f"{value:.4f}" for value in right[chosen].tolist()]
        rows = list(zip(scores, *texts, strict=True))
        return mistakes.table(("tokens right", "prompt", "target", "completion"), rows, int(failed.sum()), len(right))


class CompletionPredictor:
    """Answers new prompts from a vocabulary and lengths alone."""

    def __init__(self, vocabulary: Vocabulary, spec: Spec, separated: bool) -> None:
        self.vocabulary, self.spec, self.separated = vocabulary, spec, separated

    def read(self, words: Sequence[str]) -> Path | list[str]:
        """Return texts, or the path of a file that holds them."""
        return words_or_file(words)

    def encode(self, inputs: Sequence[str] | Path) -> tuple[Tensor, list[str]]:
        """Return prompts (B, P) for texts, or for the lines of a file, and remarks on what is unknown.

        Raises:
            UserError: a prompt is empty or too long, or the file cannot be read.
        """
        texts = read_text(str(inputs)).splitlines() if isinstance(inputs, Path) else list(inputs)
        length: int = getattr(self.spec.obs_space, "length", 0)
        remarks = []
        found = self.vocabulary.ids(texts)
        for i, (text, ids) in enumerate(zip(texts, found, strict=True)):
            if not 0 < len(ids) <= length - self.separated:
                raise UserError(
                    f"prompt {i + 1}, '{text[:40]}': got {len(ids)} tokens, expected 1 to {length - self.separated}"
                )
            if unknown := sum(token == self.vocabulary.unk for token in ids):
                remarks.append(f"prompt {i + 1}: {unknown} of {len(ids)} tokens are unknown to training")
        return self.vocabulary.fill(found, length, "left", eos=self.separated), remarks

    def decode(self, action: Tensor) -> list[str]:
        """Return the texts of completions (B, L)."""
        return self.vocabulary.decode(ended(action, self.vocabulary.eos, self.vocabulary.pad))


class Completions(OneStep):
    """What environments with completions as actions share: preparation, groups, what is saved, prediction.

    Raises:
        UserError: a keyword is unknown or of the wrong kind, the data cannot be used as asked, or training
            environments do not make up whole groups.
    """

    Config: ClassVar[type[CompletionConfig]]
    names_rows = True
    separated: ClassVar[bool] = True  # prompts end with the end token; False: they show by themselves where they end

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device = "cpu",
        split: Split = "train",
        autoreset: Autoreset = "same_step",
        **kwargs: Any,
    ) -> None:
        config = validated(self.Config, kwargs)
        self.grouped = split == "train" and config.group > 1
        if self.grouped and num_envs % config.group:
            raise UserError(f"env.num_envs: got {num_envs}, expected a multiple of env.kwargs.group={config.group}")
        self._group = torch.arange(num_envs, device=device) // config.group  # (N,)
        self._first = self._group * config.group  # (N,): of the group
        self.prepared = _prepared(type(self), config.model_dump_json(), self.stamp(config))
        example = Example(*(tokens.to(device) for tokens in self.prepared.examples[split]))
        if not len(example.obs):
            raise UserError(f"env.kwargs: the {split} split is empty, expected at least one prompt")
        super().__init__(self.make_task(config, example), num_envs, device, split, autoreset)
        if self.grouped:
            self.spec = self.spec._replace(extras=self.spec.extras | {"group"})

    @classmethod
    @abstractmethod
    def pairs(cls, config: Any) -> list[Pair]:
        """Return all prompts and their answers; of those with the same prompt the first counts."""

    @classmethod
    def stamp(cls, config: Any) -> tuple[int, ...]:
        """Return what changes when the files read do."""
        return ()

    @classmethod
    def prepare(cls, config: Any) -> Prepared:
        """Return the tokens of every split."""
        return prepare(cls.pairs(config), config, cls.separated)

    def make_task(self, config: Any, example: Example) -> CompletionTask:
        """Return the task over the examples of this split."""
        return CompletionTask(example, self.prepared.spec(), self.prepared.vocabulary, config.reward == "graded")

    def _streams(self) -> Tensor:
        return self._seeds[self._first] if self.grouped else self._seeds

    def step(self, action: Tensor) -> Step:
        """Reward completions (N, L) and end their episodes; where there are groups, say which (N,) in the extras."""
        step = super().step(action)
        return step._replace(extras={**step.extras, "group": self._group}) if self.grouped else step

    def fitted(self) -> dict[str, Any]:
        """Return the vocabulary and the lengths."""
        prompts, completions = self.prepared.examples["train"]
        return {
            "vocabulary": self.prepared.vocabulary.state(),
            "prompt_length": prompts.shape[1],
            "completion_length": completions.shape[1],
        }

    def report(self) -> tuple[dict[str, Any], str]:
        """Return the number of examples by split, the size of the vocabulary and what was left out."""
        counts = {name: len(example.obs) for name, example in self.prepared.examples.items()}
        values = {"examples": counts, "vocabulary": self.prepared.vocabulary.size, "remarks": self.prepared.remarks}
        split = ", ".join(f"{count} {name}" for name, count in counts.items())
        head = f"examples: {split}; vocabulary: {values['vocabulary']} tokens"
        return values, "\n".join([head, *self.prepared.remarks])

    @classmethod
    def predictor(cls, kwargs: Mapping[str, Any]) -> CompletionPredictor:
        """Return what answers new prompts, from the environment's keywords and what ``fitted`` returned."""
        config = validated(cls.Config, kwargs)
        vocabulary = Vocabulary.from_state(config.vocabulary or {})
        spec = completion_spec(vocabulary, config.prompt_length or 1, config.completion_length or 2)
        extras = {"group"} if config.group > 1 else set()
        return CompletionPredictor(vocabulary, spec._replace(extras=frozenset(extras)), cls.separated)


@functools.lru_cache(maxsize=1)  # a run builds several environments of the same texts, one a split
def _prepared(cls: type[Completions], config: str, stamp: tuple[int, ...]) -> Prepared:
    return cls.prepare(cls.Config.model_validate_json(config))


def prepare(pairs: Sequence[Pair], config: CompletionConfig, separated: bool) -> Prepared:
    """Return tokens by split: decided by hash of the prompt, duplicates and what is too long left out.

    Raises:
        UserError: nothing is left to train on.
    """
    answers: dict[str, str] = {}
    for prompt, answer in pairs:
        answers.setdefault(prompt, answer)
    repeated = len(pairs) - len(answers)
    remarks = [f"{repeated} of {len(pairs)} examples left out: their prompts had occurred"] if repeated else []
    prompts, targets = list(answers), list(answers.values())
    parts = parts_by_hash(prompts, config.val_fraction, config.test_fraction)
    train = (text for i in parts["train"] for text in (prompts[i], targets[i]))
    vocabulary = resolve(config.tokens, config.vocabulary_size, train, config.vocabulary)
    read, written = vocabulary.ids(prompts), vocabulary.ids(targets)
    longest = max(map(len, read)) + separated, max(map(len, written)) + 1
    room = config.prompt_length or longest[0], config.completion_length or longest[1]
    fits = [len(p) + separated <= room[0] and len(c) < room[1] for p, c in zip(read, written, strict=True)]
    if not all(fits):
        remarks.append(
            f"{fits.count(False)} of {len(fits)} examples left out: longer than {room[0]} or {room[1]} tokens"
        )
    examples = {}
    for name, rows in parts.items():
        kept = [i for i in rows if fits[i]]
        obs = vocabulary.fill([read[i] for i in kept], room[0], "left", eos=separated)
        examples[name] = Example(obs, vocabulary.fill([written[i] for i in kept], room[1], "right", eos=True))
    if not len(examples["train"].obs):
        raise UserError(
            f"env.kwargs: got no example to train on with prompts of at most {room[0]} tokens and completions of at "
            f"most {room[1]}; the longest have {longest[0]} and {longest[1]}"
        )
    return Prepared(vocabulary, examples, remarks)
