"""Graphs that are recorded once and replayed: CUDA's, or where there is none, those of a recorder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rlcore import graphs
from rlcore.graphs import Replayed, replayed
from rlcore.sources.base import Acting

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")),
]
calls: list[str] = []


def record(function: Callable[[], Any]) -> tuple[Callable[[], Any], list[Tensor]]:
    """Do as a CUDA graph does: read and write where everything lay when it was recorded."""
    calls.append("recorded")
    for _ in range(3):
        function()
    results = [x.clone() for x in function()]

    def replay() -> None:
        for into, x in zip(results, function(), strict=True):
            into.copy_(x)

    return replay, results


def recorder(device: str) -> Any:
    calls.clear()
    return record if device == "cpu" else graphs.record


def count_up(tensors: list[Tensor]) -> list[Tensor]:
    """Add x to a total in place and return the total's double."""
    total, x = tensors
    total.add_(x)
    return [total * 2]


@pytest.mark.parametrize("device", DEVICES)
def test_every_call_runs_once_on_what_it_is_given(device: str) -> None:
    run = Replayed(count_up, 1, recorder(device))
    total = torch.zeros(3, device=device)
    seen = [run([total, torch.full((3,), x, device=device)])[0] for x in (1.0, 10.0, 100.0)]
    assert [x.tolist() for x in seen] == [[2.0] * 3, [22.0] * 3, [222.0] * 3], "results were written to again"
    assert total.tolist() == [111.0] * 3, "what recording wrote was not undone"


@pytest.mark.parametrize("device", DEVICES)
def test_other_fixed_tensors_are_recorded_anew(device: str) -> None:
    run = Replayed(count_up, 1, recorder(device))
    one = torch.ones(3, device=device)
    first, second = torch.zeros(3, device=device), torch.full((3,), 5.0, device=device)
    run([first, one])
    run([second, one])
    run([second, one])
    assert (first.tolist(), second.tolist()) == ([1.0] * 3, [7.0] * 3)
    if device == "cpu":
        assert calls == ["recorded"] * 2


def test_what_lies_on_a_cpu_is_part_of_no_graph() -> None:
    assert replayed(count_up, [torch.zeros(3), torch.zeros(3)], 1) is count_up
    with FakeTensorMode(allow_non_fake_inputs=True):
        away = torch.zeros(3, device="cuda:0")
        assert replayed(count_up, [away, torch.zeros(())]) is count_up
        assert replayed(count_up, [away, away]) is not count_up


@pytest.mark.parametrize("device", DEVICES)
def test_what_varies_keeps_its_strides(device: str) -> None:
    """Compiled code knows them: it would read elsewhere in a contiguous copy of a batch that is a view."""

    def total(tensors: list[Tensor]) -> list[Tensor]:
        strides.append([x.stride() for x in tensors[1:]])
        return [sum((x.sum(0) for x in tensors[1:]), start=tensors[0])]

    strides: list[Any] = []
    run = Replayed(total, 2, recorder(device))
    zero = torch.zeros(4, device=device)
    for start in (0.0, 1.0):
        records = torch.arange(18.0, device=device).view(3, 6) + start
        view, row = records[:, 1:5], records[0, :4].expand(3, 4)
        (found,) = run([zero, view, row])
        assert torch.equal(found, view.sum(0) + row.sum(0))
    assert strides and all(given == [(6, 1), (0, 1)] for given in strides)


@pytest.mark.parametrize("device", DEVICES)
def test_recording_draws_nothing(device: str) -> None:
    """A resumed run records at another update than one that was never stopped; dropout draws the same in both."""

    def noisy(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0] + torch.rand(3, device=device)]

    zero = torch.zeros(3, device=device)
    expected = [noisy([zero])[0] for _ in range(3)]
    torch.manual_seed(0)
    first, again = (Replayed(noisy, 0, recorder(device)) for _ in range(2))
    for x, run in zip(expected, (first, first, again), strict=True):
        assert torch.equal(run([zero])[0], x)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("case", ["dqn-native", "ppo-native", "sac-pendulum"])
def test_a_run_by_recorded_graphs_is_that_without(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acting, stepping and learning: weights, moments, environments and what is logged are the same numbers."""
    from test_compiling import _moments, _trainer

    def some(run: Any, tensors: Any, varying: int = 0) -> Any:
        return Replayed(run, varying, record)

    plain = _trainer(case, "on")
    _run(plain, 6)
    calls.clear()
    monkeypatch.setattr(graphs, "replayed", some)
    again = _trainer(case, "on")
    _run(again, 6)
    assert 2 <= len(calls) <= 4, "each graph is recorded once"
    for x, y in zip(plain.agent.state_dict().values(), again.agent.state_dict().values(), strict=True):
        assert torch.equal(x, y)
    torch.testing.assert_close(_moments(again.optim), _moments(plain.optim), rtol=0, atol=0)
    one, other = (cast(Acting, trainer.source).actor for trainer in (plain, again))
    assert torch.equal(one.obs, other.obs)
    assert again.meter.flush() == plain.meter.flush()


def _run(trainer: Any, iterations: int) -> None:
    with trainer.training():
        while trainer.clock.updates == 0 or iterations:
            iterations -= trainer.clock.updates > 0
            trainer.iterate()
