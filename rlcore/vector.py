"""The vector-environment contract: N environments stepped together, every autoreset mode normalised to one `Step`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from rlcore.types import Spec, Step

Autoreset = Literal["same_step", "next_step", "disabled"]
Split = Literal["train", "validation", "test"]


class Task(ABC):
    """What a one-step environment gives the Dataset source: labelled examples, drawn directly.

    Attributes:
        size: number of examples of this split.
        streamed: drawing is slow (files, tokenising), so worker processes do it ahead of time.
    """

    size: int
    streamed: bool = False

    @abstractmethod
    def draw(self, index: Tensor) -> Any:
        """Return the items (B, ...), mostly an `Example`, at ``index`` (B,) int64, on the task's device."""

    @property
    def augments(self) -> bool:
        """Whether `augment` varies anything."""
        return type(self).augment is not Task.augment

    def augment(self, data: Any, generator: torch.Generator) -> Any:
        """Return items (B, ...) with their observations varied at random; called on what is learnt from only."""
        return data


class Predictor(Protocol):
    """What it takes to predict new inputs without the data that a run was trained on."""

    spec: Spec

    def read(self, words: Sequence[str]) -> Any:
        """Return inputs from the words of a command line.

        Raises:
            UserError: they cannot be inputs.
        """
        ...

    def encode(self, inputs: Any) -> tuple[Any, list[str]]:
        """Return observations, a tree (B, ...), for inputs as users give them, and remarks on them."""
        ...

    def decode(self, action: Tensor) -> list[Any]:
        """Return predictions (B, ...) as users read them."""
        ...


class ExplainedPredictor(Predictor, Protocol):
    """A predictor that says what its observations are made of."""

    def names(self, inputs: Any, obs: Any) -> list[list[str]]:
        """Return of each input what the numbers or tokens of its observation (F,) are, as users gave them.

        Numbers side by side with one name are one feature. Images need no names and have [].
        """
        ...


class VectorEnv(ABC):
    """N environments stepped together.

    Every implementation accepts ``(num_envs, device="cpu", split="train", autoreset="same_step",
    **kwargs)``; environments without held-out data ignore ``split``. Our own are built SAME_STEP.
    Environment i of ``reset(seed=s)`` is seeded s + i; its start states depend on its own seed and
    episode count only, never on ``num_envs`` or on the other environments.
    """

    num_envs: int
    spec: Spec
    device: torch.device
    split: Split = "train"
    autoreset: Autoreset = "same_step"
    batched: ClassVar[bool] = True  # False: stepped one by one, so that more of them cost more
    always_valid: bool = True  # False: Step.valid has to be looked at (NEXT_STEP)
    task: Any = None  # the `Task` of a one-step environment
    episodes: int | None = None  # held-out items: how many episodes one full evaluation plays
    why_not_capturable: str | None = None
    has_folds: ClassVar[bool] = False  # True: keywords ``folds`` and ``fold`` choose what is held out
    has_goals: bool = False  # True: observations with achieved_goal and desired_goal, and a `compute_reward`

    @abstractmethod
    def reset(
        self, seed: int | Sequence[int] | None = None, mask: Tensor | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Start new episodes and return (obs tree (N, ...), extras).

        Args:
            seed: reseed environment i with ``seed + i``, or with ``seed[i]``; None: streams go on.
            mask: (N,) bool, reset only these (DISABLED mode); None: all.
        """

    @abstractmethod
    def step(self, action: Tensor) -> Step:
        """Apply actions (N, ...) and return what happened."""

    def metrics(self, outcomes: dict[str, Tensor]) -> dict[str, float]:
        """Return the task's metrics over E finished episodes from their last steps' extras, each (E, ...)."""
        return {}

    def figures(self, outcomes: dict[str, Tensor]) -> dict[str, Any]:
        """Return matplotlib figures of the same, by name; none where matplotlib is not installed."""
        return {}

    def mistakes(self, outcomes: dict[str, Tensor], n: int) -> str:
        """Return the n worst mistakes in the same, the worst first, as Markdown; empty: the task lists none."""
        return ""

    def compute_reward(self, achieved: Tensor, desired: Tensor) -> Tensor:
        """Return the rewards (B,) float32 of steps that achieved goals (B, ...) where (B, ...) were desired."""
        raise NotImplementedError

    def compute_terminated(self, achieved: Tensor, desired: Tensor) -> Tensor | None:
        """Return whether such steps end their episodes, (B,) bool; None: goals have no say in it."""
        return None

    def capture(self) -> list[dict[str, Any]] | None:
        """Return one state per environment (tensors, numbers, strings, bytes; nested), or None if impossible."""
        return None

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Continue exactly where ``capture`` was called, also in a freshly built instance."""
        raise NotImplementedError

    def fitted(self) -> dict[str, Any]:
        """Return keywords under which another instance prepares its data as this one does; plain JSON values.

        Saved with the run. A class that returns some also has ``predictor(kwargs) -> Predictor``, where
        ``kwargs`` are its own keywords with these.
        """
        return {}

    def report(self) -> tuple[dict[str, Any], str] | None:
        """Return a report on the quality of the data, as plain values and as text; None: there are no data."""
        return None

    def close(self) -> None:  # noqa: B027 - most have nothing to release
        """Release processes and windows."""
