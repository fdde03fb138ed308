"""The conformance suite of agents: what the engine relies on, and that the agent learns at all."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlcore import build, checkpoint
from rlcore import config as configs
from rlcore.agent import Agent
from rlcore.config import Config
from rlcore.evaluation import evaluate
from rlcore.spaces import Tokens
from rlcore.testing import echo  # noqa: F401 - registers its environments
from rlcore.trainer import Trainer
from rlcore.tree import leaves, tmap
from rlcore.types import Batch, Rollout

# What makes a host wait for a device, or a shape depend on values.
_SYNCHRONISING = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal")


def check_agent(recipe: str | Path | Mapping[str, Any], learns: Mapping[str, Any] | None = None) -> None:
    """Hold an agent to the contract on the recipe's environment, and see that it learns a tiny problem.

    Args:
        recipe: a recipe's name, file or settings. Only its first few iterations are run.
        learns: overrides of the recipe under which the tiny problem is learnt; None: the `Echo` task (`EchoText`)
            (for agents that act), or 300 updates on one batch (for those that learn from a dataset).

    Raises:
        AssertionError: says what does not hold.
        UserError: the recipe is not valid.
    """
    config = configs.validate(configs.read(recipe))
    trainer = build.trainer(config)
    check_act(trainer)
    check_insight(trainer)
    trainer.source.env.close()  # reset behind the source's back
    trainer = build.trainer(config)
    check_loss(trainer)
    check_determinism(config)
    check_resume(config)
    check_learns(config, learns)
    trainer.source.env.close()


class _Closed(TorchDispatchMode):
    """Fails where a function waits for a value: such a function can be neither compiled nor captured."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rsplit(".", 1)[0]
        masked = name in ("aten.index", "aten.index_put", "aten.index_put_") and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in args[1]
        )
        if masked or name in _SYNCHRONISING:
            raise AssertionError(f"{self.what} reads a value or indexes by a mask ({name})")
        return func(*args, **(kwargs or {}))


def check_act(trainer: Trainer) -> None:
    """Shapes, spaces, independence of rows, a function of its arguments only."""
    agent, env = trainer.agent, trainer.source.env
    space, device = env.spec.action_space, env.device
    knobs = {name: torch.tensor(schedule(0.5), device=device) for name, schedule in agent.schedules().items()}
    obs, extras = env.reset(7)
    n = env.num_envs
    for rows in {1, n}:
        some = tmap(lambda x, rows=rows: x[:rows], obs)
        mask = extras["action_mask"][:rows] if "action_mask" in extras else None
        rng = torch.Generator(device).manual_seed(1)
        noise = agent.noise("act", rows, rng)
        before = torch.get_rng_state()
        for explore in (True, False):
            with torch.no_grad(), _Closed("act"):
                first, again = (
                    agent.act(some, agent.initial_state(rows), knobs, noise if explore else {}, mask, explore)
                    for _ in range(2)
                )
            shape = (rows, *(space.shape or ()))
            assert first.action.shape == shape, f"act returned actions of shape {first.action.shape}, expected {shape}"
            for x, y in zip(leaves(first), leaves(again), strict=True):
                assert torch.equal(x, y), "act gave two answers to the same arguments"
            if not isinstance(space, spaces.Box):
                for action in first.action.cpu().numpy():
                    assert space.contains(action), f"act chose {action}, which is not in {space}"
            states = list(leaves(agent.initial_state(rows)))
            for old, new in zip(states, leaves(first.state), strict=True):
                assert (old.shape, old.dtype) == (new.shape, new.dtype), "act changed the recurrent state's layout"
        assert torch.equal(before, torch.get_rng_state()), "act drew from torch's global generator, not from its noise"


def check_insight(trainer: Trainer) -> None:
    """Numbers of the right shapes, a function of its arguments only, and those that greedy acts go by."""
    agent, env = trainer.agent.eval(), trainer.source.env
    space, (obs, extras) = env.spec.action_space, env.reset(7)
    n, mask = env.num_envs, extras.get("action_mask")
    before = (torch.get_rng_state(), {name: x.clone() for name, x in agent.state_dict().items()})
    state = agent.initial_state(n)
    with torch.no_grad(), _Closed("insight"):
        first, again = (agent.insight(obs, state, mask) for _ in range(2))
        action = agent.act(obs, state, {}, {}, mask, explore=False).action
    agent.train()
    assert first_difference(first, again) is None, "insight gave two answers to the same arguments"
    assert first_difference(before, (torch.get_rng_state(), agent.state_dict())) is None, "insight changed something"
    discrete = isinstance(space, spaces.Discrete)
    shapes = {"q": (n, int(space.n)) if discrete else (n,), "value": (n,)}
    for name, x in first.items():
        shape = shapes.get(name, x.shape)
        assert x.shape == shape, f"insight's '{name}' has shape {tuple(x.shape)}, expected {shape}"
        if name == "probabilities":
            one = x.sum(-1)
            assert torch.allclose(one, torch.ones_like(one)), "insight's probabilities do not add up to 1"
        if name == "probabilities" or (name == "q" and discrete and "probabilities" not in first):
            assert torch.equal(x.argmax(-1), action.long()), f"act does not choose what insight's '{name}' says is best"


def check_loss(trainer: Trainer) -> None:
    """A scalar sum over items, closed under tensors, additive, differentiable for every group."""
    agent = trainer.agent.train()
    batch = first_batch(trainer)
    for group, function in agent.phases(0):
        before = torch.get_rng_state()
        with _Closed("loss"):
            out, again = function(batch), function(batch)
        assert out.total.dim() == 0, f"loss total has shape {tuple(out.total.shape)}, expected ()"
        assert torch.isfinite(out.total), "the first loss is not finite"
        assert float(out.count) > 0, f"loss counts {out.count} items"
        for name, value in out.metrics.items():
            assert isinstance(value, Tensor), f"metric '{name}' is not a tensor"
            assert value.dim() == 0, f"metric '{name}' is not a 0-dim tensor"
            assert not value.requires_grad, f"metric '{name}' carries a gradient"
        if not any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in agent.modules()):
            assert torch.equal(out.total, again.total), "loss gave two answers to the same batch"
            assert torch.equal(before, torch.get_rng_state()), "loss drew from torch's global generator"
        half = min(int(out.count), len(next(leaves(batch.data)))) // 2  # an item may be a sequence
        if half:
            parts = [part(batch, at) for at in (slice(half), slice(half, None))]
            pieces = sum(float(function(some).total.detach()) for some in parts)
            assert abs(pieces - float(out.total.detach())) <= 1e-4 * (1 + abs(pieces)), (
                f"the loss of a batch is {float(out.total.detach()):.6g}, the sum of its halves' {pieces:.6g}: it "
                "must add up over items, so that accumulation and ranks stay exact"
            )
        parameters = agent.groups()[group]
        gradients = torch.autograd.grad(out.total, parameters, allow_unused=True)
        assert any(g is not None and bool(g.any()) for g in gradients), f"group '{group}' gets no gradient"


def part(batch: Batch, at: slice) -> Batch:
    """Return some of a batch's items with the noise that is theirs; sequences from replay are items time-major."""
    if not isinstance(batch.data, Rollout):
        some = tmap(lambda x: x[at], batch._replace(knobs={}, counts=None))
        return some._replace(knobs=batch.knobs, counts=batch.counts)
    timed = tmap(lambda x: x[:, at], batch.data._replace(state=(), weight=None))
    state, weight, noise = tmap(lambda x: x[at], (batch.data.state, batch.data.weight, batch.noise))
    return batch._replace(data=timed._replace(state=state, weight=weight), noise=noise)


def check_determinism(config: Config[Any]) -> None:
    """Two runs of one seed agree bit for bit; another seed does not."""
    first, again, other = (
        _trained(c, 3) for c in (config, config, config.model_copy(update={"seed": config.seed + 1}))
    )
    assert _same(first.agent, again.agent), "two runs of one seed ended with different weights"
    assert not _same(first.agent, other.agent), "two seeds ended with the same weights"


def check_resume(config: Config[Any], iterations: int = 3) -> None:
    """A run continued from a checkpoint on disk ends with the state of one never interrupted."""
    whole = _trained(config, 2 * iterations)
    half = _trained(config, iterations)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder), half.clock.frames, half.agent.state_dict(), half.state_dict())
        saved = checkpoint.load(Path(folder))
        rest = build.trainer(config)
        rest.agent.load_state_dict(saved.agent)
        rest.load_state_dict(saved.state)
    half.source.env.close()
    iterate(rest, iterations)
    assert _same(whole.agent, rest.agent), "a resumed run ended with other weights than an uninterrupted one"
    ours, theirs = whole.state_dict(), rest.state_dict()
    for state in (ours, theirs):
        state.pop("train_seconds")
    difference = first_difference(ours, theirs)
    assert difference is None, f"a resumed run ended with another state than an uninterrupted one: {difference}"


def check_learns(config: Config[Any], learns: Mapping[str, Any] | None) -> None:
    """The agent masters a problem that any learner masters."""
    if config.source.name == "dataset":
        trainer = build.trainer(config)
        batch = first_batch(trainer)
        first = "loss" if len(phases := trainer.agent.phases(0)) == 1 else f"loss/{phases[0][0]}"
        losses = [float(trainer.update(batch).metrics[first]) for _ in range(300)]
        assert losses[-1] < 0.7 * losses[0], f"300 updates on one batch took the loss from {losses[0]} to {losses[-1]}"
        return
    env = build.env(config.env, config.device)
    continuous, writes = (isinstance(env.spec.action_space, kind) for kind in (spaces.Box, Tokens))
    env.close()
    raw = config.model_dump()
    task = {"id": "EchoText"} if writes else {"id": "Echo", "kwargs": {"continuous": continuous}}
    raw["env"] = {**task, "num_envs": 8}
    if "network" in raw["agent"]:
        small = {"name": "mlp", "kwargs": {"hidden": [32]}}
        raw["agent"]["network"] = {"name": "text_gru", "kwargs": {"width": 16}} if writes else small
    raw["budget"] = {"frames": 4000}
    if config.source.name == "replay":
        raw["source"] |= {"learning_starts": 200, "updates_per_frame": 0.25, "frames_per_iteration": 8}
        raw["source"]["frame_stack"] = 0
    trainer = build.trainer(configs.validate(configs.override(raw, learns or {})))
    trainer.fit()
    mean = evaluate(trainer.agent, trainer.source.env, 64, 0)["mean"]
    enough = -0.05 if continuous else 0.95
    assert mean >= enough, f"after 4,000 one-step episodes of Echo the mean return is {mean:.3f}, expected {enough}"


def first_batch(trainer: Trainer) -> Batch:
    """Collect until the source yields a batch."""
    while True:
        for batch in trainer.source.collect(trainer.agent, trainer.clock):
            return batch


def iterate(trainer: Trainer, iterations: int) -> None:
    """Run that many iterations that learn, whatever the budget."""
    with trainer.training():
        while iterations:
            updates = trainer.clock.updates
            trainer.iterate()
            iterations -= trainer.clock.updates > updates


def _trained(config: Config[Any], iterations: int) -> Trainer:
    trainer = build.trainer(config)
    iterate(trainer, iterations)
    return trainer


def _same(one: Agent, other: Agent) -> bool:
    return first_difference(one.state_dict(), other.state_dict()) is None


def first_difference(one: Any, other: Any, path: str = "") -> str | None:
    """Return where two nested states differ first, or None."""
    if isinstance(one, (Tensor, np.ndarray)):
        same = type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape
        return None if same and bool((one == other).all()) else path
    if isinstance(one, dict):
        if not isinstance(other, dict) or one.keys() != other.keys():
            return path
        pairs = [(f"{path}/{key}", one[key], other[key]) for key in one]
    elif isinstance(one, (list, tuple)):
        if not isinstance(other, (list, tuple)) or len(one) != len(other):
            return path
        pairs = [(f"{path}/{i}", x, y) for i, (x, y) in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other else path
    found = (first_difference(x, y, at) for at, x, y in pairs)
    return next((at for at in found if at is not None), None)
