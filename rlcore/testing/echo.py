"""The smallest problems there are, for agents that act and for agents that write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from rlcore import registry
from rlcore.native import BatchedEnv
from rlcore.spaces import Tokens
from rlcore.types import Step
from rlcore.vector import Autoreset, Split


class Echo(BatchedEnv):
    """The smallest task there is: one step, the observation names the action that is rewarded.

    Discrete: reward 1 for the action whose number is observed. Continuous: minus the squared distance
    to the number observed, scaled to [-1, 1].
    """

    num_uniforms = 1

    def __init__(
        self,
        num_envs: int,
        device: str = "cpu",
        split: Split = "train",
        autoreset: Autoreset = "same_step",
        actions: int = 4,
        continuous: bool = False,
    ) -> None:
        self.actions, self.continuous = actions, continuous
        super().__init__(
            num_envs,
            device,
            split,
            autoreset,
            obs_space=spaces.Box(0, 1, (actions,)),
            action_space=spaces.Box(-1, 1, (1,)) if continuous else spaces.Discrete(actions),
            max_episode_steps=2,
        )

    def initial(self, u: Tensor) -> Tensor:
        """Choose what to name."""
        return (u * self.actions).floor()

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward the action and end the episode."""
        if self.continuous:
            wanted = 2 * state / (self.actions - 1) - 1
            reward = -(action - wanted).square().sum(-1)
        else:
            reward = (action == state[:, 0]).float()
        return state, reward.float(), torch.ones_like(reward, dtype=torch.bool)

    def observe(self, state: Tensor) -> Tensor:
        """Name the action."""
        return torch.nn.functional.one_hot(state[:, 0].long(), self.actions).float()


class EchoText(BatchedEnv):
    """`Echo` for agents that write: the prompt is one letter, to be written once and ended.

    Each of the two tokens is worth 1/2. Environments 4 i ... 4 i + 3 show the same prompts if they are seeded together.
    """

    num_uniforms = 1
    pad, bos, eos, letters, group = 0, 1, 2, 4, 4

    def __init__(
        self, num_envs: int, device: str = "cpu", split: Split = "train", autoreset: Autoreset = "same_step"
    ) -> None:
        vocabulary = 3 + self.letters
        super().__init__(
            num_envs,
            device,
            split,
            autoreset,
            obs_space=Tokens(vocabulary, 1, self.pad, self.bos, self.eos),
            action_space=Tokens(vocabulary, 2, self.pad, self.bos, self.eos),
            max_episode_steps=2,
        )
        self.spec = self.spec._replace(extras=frozenset({"group"}))

    def reset(
        self, seed: int | Sequence[int] | None = None, mask: Tensor | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Start new episodes, those of a group alike."""
        if isinstance(seed, int):
            seed = [seed + i // self.group for i in range(self.num_envs)]
        return super().reset(seed, mask)

    def step(self, action: Tensor) -> Step:
        """Judge what was written, and say who is compared with whom."""
        step = super().step(action)
        return step._replace(extras={"group": torch.arange(self.num_envs, device=self.device) // self.group})

    def initial(self, u: Tensor) -> Tensor:
        """Choose the letter."""
        return 3 + (u * self.letters).long()

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward what is written and end the episode."""
        right = (action[:, 0] == state[:, 0]).float() + (action[:, 1] == self.eos).float()
        return state, right / 2, torch.ones_like(right, dtype=torch.bool)

    def observe(self, state: Tensor) -> Tensor:
        """Show the letter."""
        return state.clone()


for _name, _env in (("Echo", Echo), ("EchoText", EchoText)):
    if _name not in registry.names("envs"):
        registry.register("envs", _name, _env)
