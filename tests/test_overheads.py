"""Where weights are changed, and only there, denormals are zero; what was there before training is not swept."""

from __future__ import annotations

import gc

import pytest
import torch

from rlcore import build, compiled_graph, compiling
from rlcore import config as configs
from rlcore.overheads import flushed, flushing, settle, unswept
from rlcore.stacked import Stack
from rlcore.trainer import Trainer

SMALL = 1e-40  # denormal in float32


def _product() -> float:
    return float(torch.full((64,), 2 * SMALL).mul_(0.5).sum())


def test_flushed_while_it_runs_and_never_else() -> None:
    assert not flushing()
    assert _product() > 0
    assert flushed(_product)() == 0.0
    assert flushed(flushing)()
    assert not flushing()
    assert _product() > 0


def test_put_back_after_an_error() -> None:
    @flushed
    def fail() -> None:
        assert flushing()
        raise ValueError("met")

    with pytest.raises(ValueError, match="met"):
        fail()
    assert not flushing()


def test_a_users_own_setting_stays() -> None:
    torch.set_flush_denormal(True)
    try:
        assert flushed(_product)() == 0.0
        assert flushing()
    finally:
        torch.set_flush_denormal(False)


def test_several_threads_compute_as_they_are() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert not flushed(flushing)()
    finally:
        torch.set_num_threads(before)


def _trainer(seed: int = 0) -> Trainer:
    settings = {
        "compile": "off",
        "seed": seed,
        "agent": {"network": {"kwargs": {"layer_norm": False}}},
        "source": {"learning_starts": 64},
    }
    trainer = build.trainer(configs.validate(configs.override(configs.read("cartpole_dqn"), settings)))
    trainer.agent.train()
    return trainer


def _faint(trainer: Trainer) -> None:
    """Switch a unit of the first layer off for ever, and let all moments be nearly denormal."""
    trainer.agent.get_parameter("online.features.layers.1.bias").data[0] = -1e6
    for state in trainer.optim.groups["main"].optimizer.state.values():
        for moment in state.values():
            if moment.dim():
                moment.fill_(1.3e-38)


def _denormals(trainer: Trainer) -> int:
    states = trainer.optim.groups["main"].optimizer.state.values()
    moments = [x for state in states for x in state.values() if x.dim()]
    assert moments
    return sum(int(((x != 0) & (x.abs() < torch.finfo(x.dtype).tiny)).sum()) for x in moments)


def test_moments_of_a_dead_unit_become_zero() -> None:
    trainer = _trainer()
    while trainer.clock.updates < 2:
        trainer.iterate()
    _faint(trainer)
    while trainer.clock.updates < 20:
        trainer.iterate()
    assert _denormals(trainer) == 0


def test_moments_of_seeds_together_become_zero() -> None:
    trainers = [_trainer(seed) for seed in range(2)]
    batches = [next(trainer.run()) for trainer in trainers]
    stack = Stack(trainers)
    for _ in range(2):
        stack.update(batches)
    for trainer in trainers:
        _faint(trainer)
    for _ in range(2):
        stack.update(batches)
    assert [_denormals(trainer) for trainer in trainers] == [0, 0]


def test_the_collector_leaves_alone_what_was_there_and_no_longer() -> None:
    before = gc.get_freeze_count()
    with unswept():
        there = gc.get_freeze_count()
        assert there > before + 10_000  # imported modules alone
        made = [[] for _ in range(1_000)]
        settle()
        assert gc.get_freeze_count() >= there + 1_000
        cycle: list[object] = []
        cycle.append(cycle)
        known = id(cycle)
        del cycle
        gc.collect()
        assert not any(id(x) == known for x in gc.get_objects())
    assert len(made) == 1_000
    assert gc.get_freeze_count() == 0


def test_swept_again_after_an_error() -> None:
    with pytest.raises(ValueError, match="met"), unswept():
        raise ValueError("met")
    assert gc.get_freeze_count() == 0


def test_what_a_user_froze_stays() -> None:
    gc.freeze()
    try:
        with unswept(), unswept():
            pass
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


@pytest.mark.skipif(compiling.why_no_cpp() is not None, reason="needs a C++ compiler")
def test_what_a_compiler_leaves_is_settled() -> None:
    x = torch.ones(3)
    with unswept():
        before = gc.get_freeze_count()
        run = compiled_graph.attempted("x", lambda: compiled_graph.compile_graph(lambda x: [x + 1], [x]))
        assert gc.get_freeze_count() > before
    assert run is not None and torch.equal(run([x])[0], x + 1)


def test_nothing_is_settled_outside_training() -> None:
    settle()
    assert gc.get_freeze_count() == 0


def test_training_is_unswept() -> None:
    trainer = _trainer()
    with trainer.training():
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0
