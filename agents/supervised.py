"""Supervised learning as a degenerate reinforcement-learning task.

An episode has one step: observation x, action = the prediction, reward = -criterion(prediction, target).
The reward is a known differentiable function, so the task gives the loss directly: minus the sum of rewards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from torch import Tensor

from agents.configs.supervised import SupervisedConfig
from agents.networks import build_network
from agents.networks.predictor import Predictor
from rlcore.agent import Agent
from rlcore.errors import UserError
from rlcore.types import Act, Batch, Example, Loss, Spec


class Supervised(Agent):
    """A network whose output is the action."""

    Config = SupervisedConfig

    def __init__(self, config: SupervisedConfig, spec: Spec) -> None:
        super().__init__(config, spec)
        if spec.loss is None or not isinstance(spec.action_space, spaces.Box):
            raise UserError(
                f"agent 'supervised' cannot serve action space {spec.action_space} "
                f"{'' if spec.loss else 'of an environment without labelled examples'}; expected a task with a Box"
            )
        self.criterion = spec.loss
        self.shape = spec.action_space.shape
        trunk = build_network(config.network, spec.obs_space)
        outputs = self.shape[-1] if trunk.per_token else int(np.prod(self.shape))
        self.network = Predictor(trunk, outputs, config.tie)

    def act(
        self,
        obs: Any,
        state: Any,
        knobs: dict[str, Tensor],
        noise: dict[str, Tensor],
        mask: Tensor | None = None,
        explore: bool = True,
    ) -> Act:
        return Act(self.network(obs).view(-1, *self.shape), state)  # (N, ...)

    def loss(self, batch: Batch) -> Loss:
        example: Example = batch.data
        prediction = self.network(example.obs).view(-1, *self.shape)
        return Loss(*self.criterion(prediction, example.target))
