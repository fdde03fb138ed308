"""Supervised learning as a degenerate reinforcement-learning task.

An episode has one step: observation x, action = the prediction, reward = -criterion(prediction, target).
The reward is a known differentiable function, so the task gives the loss directly: minus the sum of rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents import generation
from agents.configs.supervised import SupervisedConfig
from agents.networks import build_network
from agents.networks.predictor import Predictor
from agents.networks.text_model import TextModel
from rlcore import losses
from rlcore.agent import Agent
from rlcore.errors import UserError
from rlcore.spaces import Tokens
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
        each = isinstance(spec.obs_space, Tokens) and self.shape[:-1] == (spec.obs_space.length,)
        trunk = build_network(config.network, spec.obs_space, per_token=each)
        outputs = self.shape[-1] if each else int(np.prod(self.shape))
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
        return Act(self._predict(obs), state)

    def frozen(self, obs: Any) -> Tensor | None:
        return self.network.trunk(obs) if self._trunk_is_frozen and not self.network.trunk.per_token else None

    def train(self, mode: bool = True) -> Supervised:
        """Set the mode; what never learns stays in evaluation mode, so that it is a function of the observations."""
        super().train(mode)
        if self._trunk_is_frozen:
            self.network.trunk.eval()
        return self

    @property
    def _trunk_is_frozen(self) -> bool:
        learning = [p.requires_grad for p in self.network.trunk.parameters()]
        return bool(learning) and not any(learning)

    def loss(self, batch: Batch) -> Loss:
        example: Example = batch.data
        return Loss(*self.criterion(self._predict(example.obs), example.target))

    def _predict(self, obs: Any) -> Tensor:
        prediction: Tensor = self.network(obs)  # (N, F), or of tokens, of which there may be fewer, (N, T, F)
        return prediction if self.network.trunk.per_token else prediction.view(-1, *self.shape)

    def generate(
        self, prompt: Tensor, rng: torch.Generator, length: int | None = None, stops: Sequence[int] = (), **how: Any
    ) -> Tensor:
        """Return how a language model goes on from prompts (B, P): tokens (B, n, L).

        Args:
            prompt: padded on the left.
            rng: draws the tokens.
            length: most tokens of a continuation, of which the context bounds a beam's only; None: one window.
            stops: tokens that end a continuation, beside the space's own.
            how: the rest of `agents.generation.Decoding`.

        Raises:
            UserError: the network is no language model, or a prompt or a beam's completion exceeds its context.
        """
        trunk, space = self.network.trunk, self.spec.obs_space
        if not (isinstance(trunk, TextModel) and trunk.per_token and isinstance(space, Tokens)):
            raise UserError(
                f"agent 'supervised' writes no text with network '{self.config.network.name}'; "
                "expected a language model, such as decoder or text_gru"
            )
        length = length or space.length
        context = int(getattr(trunk, "context", 0)) or max(prompt.shape[1] + length, space.length)
        if context < 2:
            raise UserError("context: got 1 token, expected at least 2 to go on from one")
        if prompt.shape[1] > context:
            raise UserError(f"prompt: got {prompt.shape[1]} tokens, expected at most {context}, the network's context")
        if how.get("beam") and prompt.shape[1] + length > context:
            most = context - prompt.shape[1]
            raise UserError(f"length: got {length}, expected at most {most} with a beam: the context holds no more")
        allowed = generation.allowed(space).to(prompt.device)

        def logits(features: Tensor) -> Tensor:
            return losses.masked(self.network.head(features), allowed)

        writer = generation.Writer(trunk, logits, [*generation.stops(space), *stops], space.pad)
        return generation.generate_on(writer, prompt, generation.Decoding(length, **how), rng, context)
