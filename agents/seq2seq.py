"""Completions of prompts, learnt from examples by teacher forcing (Sutskever et al. 2014).

loss = sum over tokens of -log p(y_i | x, y_1 ... y_{i-1})       x: prompt, y: completion, its end included
Acting writes the likeliest token at each place, given those already written, or searches with a beam.

Where the action is a label followed by a completion, a second head reads the label from the encoded prompt, and the
task weights the two losses.
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.configs.text import Seq2SeqConfig
from agents.writer import WritingAgent
from rlcore.errors import UserError
from rlcore.spaces import Tokens
from rlcore.types import Act, Batch, Example, Loss, Spec


class Seq2Seq(WritingAgent):
    """A network trained on right completions."""

    Config = Seq2SeqConfig

    def __init__(self, config: Seq2SeqConfig, spec: Spec) -> None:
        labels, completion = split_space(spec)
        super().__init__(config, spec, completion)
        if spec.loss is None:
            raise UserError(
                f"agent 'seq2seq' cannot serve action space {spec.action_space} of an environment without labelled "
                "examples; expected a task with completions to learn"
            )
        self.criterion = spec.loss
        self.labels: nn.Linear | None = None
        if labels:
            if not hasattr(self.trunk, "encode"):
                raise UserError(
                    f"agent 'seq2seq' cannot label the prompts of {spec.action_space} with network "
                    f"'{config.network.name}'; expected encoder_decoder"
                )
            self.labels = nn.Linear(self.trunk.out_features, labels)

    def act(
        self,
        obs: Any,
        state: Any,
        knobs: dict[str, Tensor],
        noise: dict[str, Tensor],
        mask: Tensor | None = None,
        explore: bool = True,
    ) -> Act:
        completion = self.write(obs)  # (N, L)
        if self.labels is None:
            return Act(completion, state)
        label = self.label_logits(obs).argmax(-1, keepdim=True)
        return Act(torch.cat([label, completion], 1), state)  # (N, 1 + L)

    def loss(self, batch: Batch) -> Loss:
        example: Example = batch.data
        if self.labels is None:
            return Loss(*self.criterion(self.teacher_forced(example.obs, example.target), example.target))
        prediction = (self.label_logits(example.obs), self.teacher_forced(example.obs, example.target[:, 1:]))
        return Loss(*self.criterion(prediction, example.target))

    def teacher_forced(self, prompt: Tensor, completion: Tensor) -> Tensor:
        """Return the logits (B, L, V) of completions (B, L), each place given the tokens before it."""
        return self.network.head(self.trunk.given(prompt, completion))

    def label_logits(self, prompt: Tensor) -> Tensor:
        """Return the logits (B, C) of the labels of prompts (B, P)."""
        assert self.labels is not None
        return self.labels(self.trunk.encode(prompt))  # type: ignore[operator]


def split_space(spec: Spec) -> tuple[int, Any]:
    """Return the number of labels that go before a completion (0: there is none), and the completion's space."""
    space, prompt = spec.action_space, spec.obs_space
    if isinstance(space, Tokens) or not (isinstance(space, spaces.MultiDiscrete) and isinstance(prompt, Tokens)):
        return 0, space
    labels, *rest = space.nvec.flatten().tolist()
    if not rest or set(rest) != {prompt.vocabulary}:
        return 0, space
    return labels, Tokens(prompt.vocabulary, len(rest), prompt.pad, prompt.bos, prompt.eos)
