"""Graphs that are recorded once and replayed: CUDA's, or where there is none, those of a recorder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import test_frames
import torch
from test_replay import NoSync, draw
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rlcore import build, config, graphs
from rlcore.arrays import on_tensors
from rlcore.graphs import LAYOUTS, Graphs, Replayed, replayed
from rlcore.sources.base import Acting
from rlcore.testing.agents import first_difference

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")),
]
calls: list[str] = []


def record(function: Callable[[], Any], undo: Callable[[], None]) -> tuple[Callable[[], Any], list[Tensor]]:
    """Do as a CUDA graph does: the same operations again, where everything lay when it was recorded; nothing waits."""
    calls.append("recorded")
    for _ in range(3):
        function()
        undo()
    with NoSync():
        again = make_fx(lambda: [*function()])()
    undo()
    results = [x.clone() for x in again()]

    def replay() -> None:
        for into, x in zip(results, again(), strict=True):
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


@pytest.mark.parametrize("device", DEVICES)
def test_functions_of_trees_are_recorded_for_every_layout(device: str) -> None:
    """Heads that a call moves are put back after recording; what is written at their place is written once more."""
    ring, head = torch.zeros(40, device=device), torch.zeros(1, dtype=torch.int64, device=device)

    def put(items: dict[str, Tensor], factor: float | Tensor) -> tuple[Tensor, None]:
        at = head + torch.arange(len(items["x"]), device=device)
        ring.index_copy_(0, at, items["x"] * factor)
        head.add_(len(items["x"]))
        return ring[:4].clone(), None

    run = Graphs(recorder(device))
    for i, count in enumerate([2, 2, 3, 2]):
        items = {"x": torch.full((count,), i + 1.0, device=device)}
        seen, nothing = run("put", put, items, 10.0, changed=lambda: [head])
        assert nothing is None
        assert seen.tolist() == [10, 10, 20, 20] if i else seen.tolist() == [10, 10, 0, 0]
    assert ring[:10].tolist() == [10, 10, 20, 20, 30, 30, 30, 40, 40, 0]
    if device == "cpu":
        assert calls == ["recorded"] * 2
    plain = Graphs()
    head.zero_()
    plain("put", put, {"x": torch.ones(2, device=device)}, 5.0)
    assert ring[:3].tolist() == [5, 5, 20] and head.item() == 2


def test_what_cannot_be_recorded_is_told_once_and_runs_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    run, total = Graphs(recorder("cpu")), torch.zeros(())

    def waits(x: Tensor) -> Tensor:
        total.add_(1.0)
        return x * x.sum().item()

    for count in (1, 2):
        x = torch.tensor([1.0, 2.0], requires_grad=True)
        seen = run("waits", waits, x, changed=lambda: [total])
        assert seen.tolist() == [3.0, 6.0] and not seen.requires_grad
        assert total.item() == count, "what failed was not undone"
    assert capsys.readouterr().err.count("waits runs uncompiled") == 1


def test_what_came_to_lie_elsewhere_is_recorded_anew() -> None:
    kept = {"table": torch.zeros(3)}
    run = Graphs(recorder("cpu"))

    def look(index: Tensor) -> Tensor:
        return torch.stack((kept["table"][index],) * 2, 1)[:, 0]

    first = torch.tensor([0, 2])
    run("look", look, first, places=lambda: [kept["table"]])
    kept["table"].add_(1.0)
    assert run("look", look, first, places=lambda: [kept["table"]]).tolist() == [1, 1]
    kept["table"] = torch.tensor([5.0, 6.0, 7.0])
    assert run("look", look, first, places=lambda: [kept["table"]]).tolist() == [5, 7]
    assert calls == ["recorded"] * 2
    for count in range(3, 3 + 2 * LAYOUTS):
        index = torch.zeros(count, dtype=torch.int64)
        seen = run("look", look, index, places=lambda: [kept["table"]])
        assert seen.tolist() == [5] * count and seen.is_contiguous()
    assert len(calls) == 1 + LAYOUTS, "functions are recorded for so many layouts only"


def test_rings_of_frames_that_grew_are_read_where_they_lie_now() -> None:
    with on_tensors():
        envs, run = test_frames.Stacks(2, 4, 0, 0.4), Graphs(recorder("cpu"))
        plain, once = test_frames.buffers(envs, 4, 400)
        rows = once.frame_rows
        for steps in (20, 20, 300):
            test_frames.add(envs, steps, plain, once)
            index = draw(plain, 30, torch.Generator().manual_seed(steps))
            seen = run("gather", lambda at: once.gather(at, 0.9, 2), index, places=once.places)
            assert first_difference(plain.gather(index, 0.9, 2), seen) is None
        assert once.frame_rows > rows and len(calls) > 1


SOURCES: dict[str, dict[str, Any]] = {  # what is recorded: put, gather, choose, update, prepare
    "dqn-native": {},
    "dqn-n-step": {},
    "dqn-frames": {},
    "rainbow": {},
    "r2d2": {"source.prioritized": True},
    "sac-pendulum": {},
    "dqn-hindsight": {},
    "ppo-native": {},
    "ppo-memory": {},
    "pqn": {},
    "dqn-rollout": {},
}


@pytest.mark.parametrize("case", sorted(SOURCES))
def test_a_source_by_recorded_graphs_is_that_without(case: str) -> None:
    """What is stored, drawn, made targets of, learnt and logged are the same numbers, and nothing of it waits."""
    from test_compiling import CASES

    with on_tensors():  # as on a GPU
        states = []
        for graphed in (False, True):
            recipe, overrides = CASES[case]
            settings = config.override(config.read(recipe), {**overrides, **SOURCES[case], "compile": "off"})
            trainer = build.trainer(config.validate(settings))
            calls.clear()
            if graphed:
                cast(Acting, trainer.source).graphs.record = record
            _run(trainer, 6)
            states.append({"agent": trainer.agent.state_dict(), **trainer.state_dict(), "train_seconds": 0})
    assert first_difference(*states) is None
    assert calls, "nothing was recorded"


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
