"""A loss as a function of flat tensors is the module's own, and so is its gradient; seeds may be a dimension of it."""

from __future__ import annotations

import copy

import pytest
import torch

from rlcore import build, config
from rlcore.functional import FunctionalLoss
from rlcore.optim import Optim
from rlcore.types import Batch

RECIPES = ["cartpole_dqn", "cartpole_qr_dqn", "cartpole_ppo", "pendulum_sac"]


def _prepared(recipe: str) -> tuple[build.Trainer, Batch]:
    settings = config.override(config.read(recipe), {"source.learning_starts": 64} if recipe != "cartpole_ppo" else {})
    trainer = build.trainer(config.validate(settings))
    trainer.agent.train()
    while True:
        for batch in trainer.source.collect(trainer.agent, trainer.clock):
            return trainer, batch


@pytest.mark.parametrize("recipe", RECIPES)
def test_value_and_gradient_are_the_modules_own(recipe: str) -> None:
    trainer, batch = _prepared(recipe)
    agent = trainer.agent
    for name, function in agent.phases(0):
        group = trainer.optim.groups[name]
        own = {id(p): key for key, p in agent.named_parameters()}
        out = function(batch)
        expected = torch.autograd.grad(out.total, group.parameters)
        flat = group.flat.detach().clone().requires_grad_()
        pure = FunctionalLoss(agent, function, {own[id(p)]: p for p in group.parameters})
        again = pure(flat, {}, batch)
        (gradient,) = torch.autograd.grad(again.total, flat)
        torch.testing.assert_close(again.total, out.total)
        torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in expected]))
        for key in group.parameters:
            assert key.grad is not None and not key.grad.any()  # the module itself was left alone


def test_seeds_are_a_dimension_of_it() -> None:
    trainer, batch = _prepared("cartpole_dqn")
    agent = trainer.agent
    twin = copy.deepcopy(agent)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.1)
    agents = [agent, twin]
    optims = [trainer.optim, Optim(twin, trainer.optim.groups["main"].config)]
    flats = torch.stack([o.groups["main"].flat.detach() for o in optims]).requires_grad_()
    own = {id(p): key for key, p in agent.named_parameters()}
    named = {own[id(p)]: p for p in optims[0].groups["main"].parameters}
    pure = FunctionalLoss(agent, agent.loss, named)
    rest = {
        key: torch.stack([dict(a.named_parameters())[key].detach() for a in agents])
        for key in dict(agent.named_parameters())
        if key not in named
    }

    def total(flat: torch.Tensor, rest: dict[str, torch.Tensor]) -> torch.Tensor:
        return pure(flat, rest, batch).total

    totals = torch.vmap(total)(flats, rest)
    (gradient,) = torch.autograd.grad(totals.sum(), flats)
    for k, one in enumerate(agents):
        out = one.loss(batch)
        torch.testing.assert_close(totals[k], out.total)
        expected = torch.autograd.grad(out.total, optims[k].groups["main"].parameters)
        torch.testing.assert_close(gradient[k], torch.cat([g.flatten() for g in expected]))
