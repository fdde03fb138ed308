"""What is exported of an agent: its greedy act as a function of tensors with names.

    obs ..., action_mask, state ...  ->  action, scores, next_state ...                     batch first in each

Observations are raw and actions those of the environment: normalisers and encoders are the agent's own; a Box's actions
are held within it, discrete ones counted from the space's start. A memory is zeros where an episode begins. Only what
greedy acting reads of the agent is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlcore.actor import is_empty
from rlcore.agent import Agent
from rlcore.gym_vector import as_tensors
from rlcore.spaces import Tokens
from rlcore.tree import leaves, tmap
from rlcore.types import Act, Spec


class Signature(NamedTuple):
    """Names of what goes in and comes out, in order, and the trees they are leaves of."""

    obs: list[str]  # "obs", or "obs.KEY" for each leaf of a Dict or Tuple
    mask: list[str]  # "action_mask", or nothing
    state: list[str]  # "state.I" for each leaf of a memory
    action: str  # "prediction" of a task, such as logits, else "action"
    scores: list[str]  # "q_values" or "probabilities" of discrete actions, where the agent has any
    lengths: bool  # the second dimension of observations, texts, may vary too
    trees: tuple[Any, Any]  # an observation and a memory, with ... for each leaf

    @property
    def inputs(self) -> list[str]:
        """All inputs."""
        return [*self.obs, *self.mask, *self.state]

    @property
    def outputs(self) -> list[str]:
        """All outputs."""
        return [self.action, *self.scores, *(f"next_{name}" for name in self.state)]


def names(tree: Any, prefix: str) -> list[str]:
    """Return a name for each leaf of a tree, in the order of `leaves`."""
    if isinstance(tree, dict):
        return [name for key, part in tree.items() for name in names(part, f"{prefix}.{key}")]
    if isinstance(tree, tuple):
        return [name for i, part in enumerate(tree) for name in names(part, f"{prefix}.{i}")]
    return [prefix]


def signature(agent: Agent, spec: Spec) -> Signature:
    """Return the names for an agent in evaluation mode."""
    obs, state, mask = example(agent, spec, 2)
    space = spec.action_space
    found = (
        {} if isinstance(space, spaces.Box) else scores_of(agent, obs, state, mask, greedy_act(agent, obs, state, mask))
    )
    texts = isinstance(spec.obs_space, Tokens) and isinstance(space, spaces.Box)
    each = texts and (space.shape or ())[:-1] == spec.obs_space.shape  # a prediction for each token
    action = "prediction" if spec.loss is not None and isinstance(space, spaces.Box) else "action"
    trees = tuple(tmap(lambda _: ..., tree) for tree in (obs, () if is_empty(state) else state))
    state_names = [] if is_empty(state) else names(state, "state")
    return Signature(
        names(obs, "obs"), [] if mask is None else ["action_mask"], state_names, action, [*found], each, trees
    )


def example(agent: Agent, spec: Spec, n: int) -> tuple[Any, Any, Tensor | None]:
    """Return n equal observations, empty memories and, where the environment has them, masks that allow everything."""
    one = as_tensors(spec.obs_space, spec.obs_space.sample())
    obs = tmap(lambda x: x.unsqueeze(0).expand(n, *x.shape).contiguous(), one)
    actions = getattr(spec.action_space, "n", 0) if "action_mask" in spec.extras else 0
    return obs, agent.initial_state(n), torch.ones(n, int(actions), dtype=torch.bool) if actions else None


def greedy_act(agent: Agent, obs: Any, state: Any, mask: Tensor | None) -> Act:
    """Act greedily."""
    return agent.act(obs, state, {}, {}, mask, explore=False)


def scores_of(agent: Agent, obs: Any, state: Any, mask: Tensor | None, act: Act) -> dict[str, Tensor]:
    """Return what discrete actions (N, *parts) were chosen by, (N, *parts, A); none where the agent has no such."""
    if "q" in act.extras:
        return {"q_values": act.extras["q"]}
    seen = agent.insight(obs, state, mask)
    return {"probabilities": seen["probabilities"]} if "probabilities" in seen else {}


class Greedy(nn.Module):
    """The function to export.

    Args:
        agent: in evaluation mode; copied.
        spec: the spaces it acts in.
        dtype: that weights are stored in.
        rows: real inputs, whose types count; None: those of the spaces.
    """

    low: Tensor | None
    high: Tensor | None
    start: Tensor | None

    def __init__(
        self,
        agent: Agent,
        spec: Spec,
        dtype: torch.dtype = torch.float32,
        rows: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__()
        self._rows = rows
        self.signature, self.spec, self.dtype = signature(agent, spec), spec, dtype
        self.agent = copy.deepcopy(agent).eval().requires_grad_(False)
        drop_unread(self.agent, spec)
        if dtype != torch.float32:
            store(self.agent, dtype)
        space = spec.action_space
        bounded = isinstance(space, spaces.Box) and (space.bounded_below.any() or space.bounded_above.any())
        for edge in ("low", "high"):
            bound = torch.as_tensor(getattr(space, edge), dtype=torch.float32) if bounded else None
            self.register_buffer(edge, bound)
        start = torch.as_tensor(spec.action_start)
        self.register_buffer("start", start if start.any() else None)
        self.eval()

    def inputs(self, n: int = 2) -> tuple[Tensor, ...]:
        """Return an example of n equal rows."""
        if self._rows is not None:
            return tuple(x[:1].expand(n, *x.shape[1:]).clone() for x in self._rows)
        obs, state, mask = example(self.agent, self.spec, n)
        given = [*leaves(obs), *([] if mask is None else [mask]), *([] if is_empty(state) else leaves(state))]
        return tuple(x.clone() for x in given)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for the inputs, both in the order of the signature."""
        obs, state, mask = arranged(self.signature, inputs)
        act = greedy_act(self.agent, obs, state, mask)
        scores = scores_of(self.agent, obs, state, mask, act) if self.signature.scores else {}
        action = act.action
        if self.low is not None and self.high is not None:
            action = torch.minimum(torch.maximum(action, self.low), self.high)
        if self.start is not None:
            action = action + self.start
        return (action, *scores.values(), *(leaves(act.state) if self.signature.state else ()))


def arranged(names: Signature, inputs: Sequence[Tensor]) -> tuple[Any, Any, Tensor | None]:
    """Return the observations, memory and mask that inputs are, as `Agent.act` takes them."""
    given: Iterator[Tensor] = iter(inputs)
    obs = tmap(lambda _: next(given), names.trees[0])
    mask = next(given) if names.mask else None
    return obs, tmap(lambda _: next(given), names.trees[1]), mask


class _Reads(TorchDispatchMode):
    """Notes which tensors operations are given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = tree_leaves((args, kwargs or {}))
        self.seen |= {x.data_ptr() for x in found if isinstance(x, Tensor)}
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def drop_unread(agent: Agent, spec: Spec) -> None:
    """Take away the parameters and buffers that greedy acting does not read: critics, targets, counts."""
    obs, state, mask = example(agent, spec, 2)
    with _Reads() as reads:
        act = greedy_act(agent, obs, state, mask)
        if not isinstance(spec.action_space, spaces.Box):
            scores_of(agent, obs, state, mask, act)
    for module in agent.modules():
        for held in (module._parameters, module._buffers):
            for name, x in held.items():
                if x is not None and x.data_ptr() not in reads.seen:
                    held[name] = None


class _Widen(nn.Module):
    """Reads a stored tensor in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def store(agent: Agent, dtype: torch.dtype) -> None:
    """Store the parameters of an agent in another type; they are widened to float32 wherever they are read."""
    stored: dict[int, nn.Parameter] = {}
    for module in list(agent.modules()):
        for name, x in list(module.named_parameters(recurse=False)):
            own = stored.setdefault(id(x), nn.Parameter(x.to(dtype), requires_grad=False))  # tied weights stay tied
            parametrize.register_parametrization(module, name, _Widen(), unsafe=True)
            module.parametrizations[name].original = own  # type: ignore[index, union-attr]
