"""What was written against the agent: real observations, the agent's answers, and how far the artefact's are from them.

difference = max over all outputs and items of |a - b| / max(1, |a|)          a: the agent's, b: the artefact's

A float32 at 100 is exact to 4e-6 only, so beyond 1 the difference is relative. A discrete action may differ where its
score, by the agent, ties with the best to that tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore import build
from rlcore.actor import is_empty
from rlcore.agent import Agent
from rlcore.errors import UserError
from rlcore.export.exported import Signature, arranged, greedy_act, scores_of
from rlcore.export.formats import Artefact
from rlcore.run import Run
from rlcore.tree import leaves, tmap
from rlcore.types import Act, Batch, Loss, Spec
from rlcore.vector import Split, VectorEnv

TOLERANCE = 1e-5
SEED = 3_000_000  # of the episodes played: neither training's nor evaluation's
WIDTH = 64  # most rows at once
Rows = list[Tensor]  # inputs or outputs in the order of the signature, (B, ...) each


class Difference(NamedTuple):
    """How far an artefact is from the agent."""

    observations: int
    largest: float  # see above
    equal_actions: float | None  # share of equal discrete actions; None: they are continuous
    wrong: int  # discrete actions that differ though the scores do not tie


@torch.no_grad()
def observations(run: Run, wanted: int, splits: Sequence[Split] = ("test", "validation", "train")) -> list[Rows]:
    """Return the inputs of ``wanted`` real acts or a few more: played greedily, or of a task's splits in order."""
    env = build.evaluation_env(run.config, "test", min(wanted, 8))
    try:
        if env.task is None:
            return _played(run, env, wanted)
    finally:
        env.close()
    found: list[Rows] = []
    for split in splits:
        if (missing := wanted - sum(len(rows[0]) for rows in found)) <= 0:
            break
        env = build.env(run.config.env, run.config.device, split)  # as wide as in training: groups must fit in
        try:
            for index in torch.arange(min(missing, env.task.size)).split(WIDTH):
                obs = env.task.draw(index).obs
                found.append([*leaves(obs), *leaves(state_of(run.agent, len(index)))])
        finally:
            env.close()
    return found


def state_of(agent: Agent, n: int) -> Any:
    """Return empty memories, or () for none."""
    state = agent.initial_state(n)
    return () if is_empty(state) else state


def _zeroed(state: Any, ended: Tensor) -> Any:
    """Return memories (N, ...), empty where an episode ended."""
    return tmap(lambda x: x.masked_fill(ended.view(-1, *[1] * (x.dim() - 1)), 0), state)


def _played(run: Run, env: VectorEnv, wanted: int) -> list[Rows]:
    found: list[Rows] = []
    obs, extras = env.reset(SEED)
    state = state_of(run.agent, env.num_envs)
    for _ in range(-(-wanted // env.num_envs)):
        mask = extras.get("action_mask")
        found.append([*leaves(obs), *([] if mask is None else [mask]), *leaves(state)])
        act = greedy_act(run.agent, obs, state, mask)
        step = env.step(act.action)
        ended = step.terminated | step.truncated
        obs, extras, state = step.obs, step.extras, _zeroed(act.state, ended) if state else ()
    return [[x.clone() for x in rows] for rows in found]


@torch.no_grad()
def answers(agent: Agent, spec: Spec, names: Signature, inputs: Sequence[Rows]) -> list[Rows]:
    """Return the agent's own outputs: what `Agent.act` says, its actions as the environment takes them."""
    found: list[Rows] = []
    for rows in inputs:
        obs, state, mask = arranged(names, rows)
        act = greedy_act(agent, obs, state, mask)
        action = act.action.numpy() + spec.action_start
        if isinstance(spec.action_space, spaces.Box):
            action = np.clip(action, spec.action_space.low, spec.action_space.high)
        scores = scores_of(agent, obs, state, mask, act).values() if names.scores else ()
        found.append([torch.as_tensor(action), *scores, *(leaves(act.state) if names.state else ())])
    return found


def compare(
    names: Signature, spec: Spec, inputs: Sequence[Rows], expected: Sequence[Rows], artefact: Artefact
) -> Difference:
    """Run an artefact on inputs, a first row alone and the others at once, and compare it with the agent's outputs."""
    largest, equal, wrong, count, actions = 0.0, 0, 0, 0, 0
    for rows, outputs in zip(inputs, expected, strict=True):
        for part in (slice(0, 1), slice(1, None)):
            given, wanted = [x[part] for x in rows], [x[part] for x in outputs]
            if not len(given[0]):
                continue
            got = artefact(given)
            _require_alike(names, wanted, got)
            count += len(given[0])
            same = (wanted[0] == got[0]).flatten(1).all(1) if wanted[0].dim() > 1 else wanted[0] == got[0]
            if not wanted[0].is_floating_point():
                equal, actions = equal + int(same.sum()), actions + len(same)
                wrong += int((~same & ~_ties(wanted, got, spec, bool(names.scores))).sum())
            for a, b in zip(wanted, got, strict=True):
                if a.is_floating_point():
                    largest = max(largest, float(((a - b).abs() / a.abs().clamp(min=1)).nan_to_num(torch.inf).max()))
                elif a is not wanted[0]:  # a memory of numbers: such as the action before, equal where actions are
                    wrong += int((same & (a != b).view(len(a), -1).any(1)).sum())
    return Difference(count, largest, equal / actions if actions else None, wrong)


def _require_alike(names: Signature, wanted: Rows, got: Rows) -> None:
    for name, a, b in zip(names.outputs, wanted, got, strict=True):
        if a.shape != b.shape or a.is_floating_point() != b.is_floating_point():
            raise UserError(
                f"{name}: the exported file gives {tuple(b.shape)} {b.dtype}, the agent {tuple(a.shape)} {a.dtype}"
            )


def _ties(wanted: Rows, got: Rows, spec: Spec, scored: bool) -> Tensor:
    """Return for which rows (B,) the action got scores as well as the agent's, by the agent's scores."""
    if not scored:
        return torch.zeros(len(wanted[0]), dtype=torch.bool)
    start = torch.as_tensor(spec.action_start)
    best, chosen = (wanted[1].gather(-1, (action - start).unsqueeze(-1)).squeeze(-1) for action in (wanted[0], got[0]))
    near = best - chosen <= 2 * TOLERANCE * best.abs().clamp(min=1)
    return near.flatten(1).all(1) if near.dim() > 1 else near


class ArtefactAgent(Agent):
    """An agent that acts by an exported file, so that whatever plays agents plays it."""

    def __init__(self, config: Any, spec: Spec, names: Signature, state: Rows, artefact: Artefact) -> None:
        super().__init__(config, spec)
        self.names, self.empty, self.artefact = names, state, artefact

    def initial_state(self, n: int) -> tuple[Tensor, ...]:
        """Return zeros."""
        return tuple(torch.zeros(n, *x.shape[1:], dtype=x.dtype) for x in self.empty)

    def act(
        self,
        obs: Any,
        state: Any,
        knobs: dict[str, Tensor],
        noise: dict[str, Tensor],
        mask: Tensor | None = None,
        explore: bool = True,
    ) -> Act:
        """Run the file."""
        outputs = self.artefact([*leaves(obs), *([] if mask is None else [mask]), *leaves(state)])
        memory = outputs[len(outputs) - len(self.names.state) :]
        start = torch.as_tensor(self.spec.action_start)
        return Act(outputs[0] - start if start.any() else outputs[0], tuple(memory))

    def loss(self, batch: Batch) -> Loss:
        """Refuse."""
        raise UserError("an exported file does not learn; expected the run that it was exported from")
