"""Supervised tasks as degenerate environments: an episode is one example, the action is the prediction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlcore.arrays import mix, uniforms
from rlcore.native import check_arguments, check_states, seed_list
from rlcore.tree import tmap
from rlcore.types import Example, Spec, Step
from rlcore.vector import Autoreset, Split, Task, VectorEnv


class OneStepTask(Task):
    """Labelled examples of one split, and what a prediction for one is worth."""

    spec: Spec
    outcomes: frozenset[str] = frozenset({"prediction", "target"})  # what `outcome` returns

    @abstractmethod
    def draw(self, index: Tensor) -> Example:
        """Return the examples (B, ...) at ``index`` (B,) int64, on the task's device."""

    @abstractmethod
    def reward(self, action: Tensor, target: Any, /) -> Tensor:
        """Return the reward (B,) float32 of predicting ``action`` (B, ...) where ``target`` (B, ...) is true."""

    def outcome(self, action: Tensor, target: Any) -> dict[str, Tensor]:
        """Return what `metrics` needs to know of predictions (B, ...), by name, each (B, ...).

        A whole held-out split is kept, so tasks with wide predictions return what sums them up.
        """
        return {"prediction": action, "target": target}

    @abstractmethod
    def metrics(self, outcomes: dict[str, Tensor]) -> dict[str, float]:
        """Return the metrics over E outcomes, each (E, ...)."""

    def figures(self, outcomes: dict[str, Tensor]) -> dict[str, Any]:
        """Return matplotlib figures of E outcomes, each (E, ...), by name."""
        return {}

    def mistakes(self, outcomes: dict[str, Tensor], n: int) -> str:
        """Return the n worst mistakes among E outcomes, each (E, ...), as Markdown; empty: the task lists none."""
        return ""


class OneStep(VectorEnv):
    """Plays a task: reset shows x of an example, the one step of the episode rewards the prediction for it.

    The step's own successor is x itself: a terminal step's is never bootstrapped from. While training, episode k
    of the environment seeded s shows row floor(u * size), with u in [0, 1) a hash of (s, k). On a held-out split it
    shows row (s + k) mod size, so that the seeds base .. base + size - 1 play each row exactly once.
    """

    task: OneStepTask
    names_rows: ClassVar[bool] = False  # steps' extras say which row (N,) of the split was shown

    def __init__(
        self,
        task: OneStepTask,
        num_envs: int,
        device: str | torch.device = "cpu",
        split: Split = "train",
        autoreset: Autoreset = "same_step",
    ) -> None:
        check_arguments(num_envs, autoreset)
        self.task = task
        self.num_envs, self.device = num_envs, torch.device(device)
        self.split: Split = split
        self.autoreset: Autoreset = autoreset
        self.always_valid = autoreset != "next_step"
        self.spec = task.spec._replace(extras=task.outcomes | ({"row"} if self.names_rows else set()))
        self.episodes = None if split == "train" else task.size
        self._seeds = torch.arange(num_envs, device=self.device)  # (N,)
        self._episode = torch.full_like(self._seeds, -1)  # (N,): of this seed, from 0
        self._over = torch.zeros(num_envs, dtype=torch.bool, device=self.device)  # NEXT_STEP: the coming step resets
        self._example = task.draw(self._rows())

    def _rows(self) -> Tensor:
        if self.split == "train":
            return (uniforms(mix(self._streams()), self._episode, 1)[:, 0] * self.task.size).long()
        return (self._seeds + self._episode) % self.task.size

    def _streams(self) -> Tensor:
        """Return the seeds (N,) whose training rows the environments show: their own."""
        return self._seeds

    def reset(
        self, seed: int | Sequence[int] | None = None, mask: Tensor | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Show the next examples of the streams, or the first ones of newly seeded streams."""
        chosen = torch.ones_like(self._over) if mask is None else mask.to(self.device)
        if seed is None:
            self._episode = self._episode + chosen
        else:
            seeds = torch.tensor(seed_list(seed, self.num_envs), device=self.device)
            self._seeds = torch.where(chosen, seeds, self._seeds)
            self._episode = torch.where(chosen, 0, self._episode)
        self._over = self._over & ~chosen
        self._example = self.task.draw(self._rows())
        return self._example.obs, {}

    def step(self, action: Tensor) -> Step:
        """Reward predictions (N, ...) and end their episodes."""
        x, target = self._example
        shown = {"row": self._rows()} if self.names_rows else {}
        live = ~self._over  # in NEXT_STEP, the step after an episode only resets
        reward = torch.where(live, self.task.reward(action, target), 0.0)
        if self.autoreset == "same_step":
            self._episode = self._episode + 1
        elif self.autoreset == "next_step":
            self._episode = self._episode + self._over
            self._over = live
        self._example = self.task.draw(self._rows())
        obs = self._example.obs
        next_obs = x if self.always_valid else tmap(lambda old, new: torch.where(_like(live, old), old, new), x, obs)
        return Step(
            obs=obs,
            reward=reward,
            terminated=live,
            truncated=torch.zeros_like(live),
            next_obs=next_obs,
            valid=live,
            extras=self.task.outcome(action, target) | shown,
        )

    def metrics(self, outcomes: dict[str, Tensor]) -> dict[str, float]:
        """Return the task's metrics over E episodes."""
        return self.task.metrics(outcomes)

    def figures(self, outcomes: dict[str, Tensor]) -> dict[str, Any]:
        """Return the task's figures of E episodes."""
        return self.task.figures(outcomes)

    def mistakes(self, outcomes: dict[str, Tensor], n: int) -> str:
        """Return the task's n worst mistakes in E episodes, as Markdown."""
        return self.task.mistakes(outcomes, n)

    def capture(self) -> list[dict[str, Any]]:
        """Return each environment's seed, episode count and whether its next step resets."""
        columns = (self._seeds.tolist(), self._episode.tolist(), self._over.tolist())
        return [{"seed": s, "episode": e, "over": o} for s, e, o in zip(*columns, strict=True)]

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Continue exactly where ``capture`` was called.

        Raises:
            UserError: the states are those of another number of environments.
        """
        check_states(states, self.num_envs)
        self._seeds = torch.tensor([state["seed"] for state in states], device=self.device)
        self._episode = torch.tensor([state["episode"] for state in states], device=self.device)
        self._over = torch.tensor([state["over"] for state in states], device=self.device)
        self._example = self.task.draw(self._rows())


def _like(flag: Tensor, x: Tensor) -> Tensor:
    return flag.view(-1, *[1] * (x.dim() - 1))
