"""Seeds trained together learn what each learns alone, in folders of their own, and leave the others alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from scipy.stats import ks_2samp
from torch import nn

from rlcore import api, build, compiled_graph, compiling, config, together
from rlcore.batched import traced
from rlcore.clock import Clock
from rlcore.errors import Diverged, UserError
from rlcore.evaluation import play
from rlcore.optim import Optim
from rlcore.stacked import Stack
from rlcore.stacked_play import Evaluations
from rlcore.trainer import Trainer, sent
from rlcore.tree import tmap
from rlcore.types import Batch
from rlcore.vector import VectorEnv

SEEDS = [1000, 1001, 1002]
SMALL: dict[str, Any] = {
    "budget.frames": 1024, "source.learning_starts": 128, "eval.every": 512, "eval.episodes": 2, "log.every": 256,
    "eval.final_episodes": 2, "eval.final_seed": 2_000_000, "checkpoint.every": 256,
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "cartpole_dqn": {"source.learning_starts": 128, "optim.l2": 1e-3},
    "cartpole_ppo": {"agent.target_kl": 0.02},
    "pendulum_sac": {"source.learning_starts": 128},
    "cartpole_c51": {"source.learning_starts": 128},
    "pendulum_td3": {"source.learning_starts": 128},
    "cartpole_rainbow": {"source.learning_starts": 128},
    "cartpole_pqn": {},
}

SLOW = {"pendulum_td3", "cartpole_rainbow", "cartpole_pqn"}


def _settings(recipe: str, seed: int, **overrides: Any) -> config.Config[Any]:
    return config.validate(config.override(config.read(recipe), {**overrides, "seed": seed, "compile": "off"}))


def _recorded(settings: config.Config[Any], updates: int) -> list[tuple[dict[str, int], Batch]]:
    """Return what a run alone learnt from, in double precision, and its clock each time."""
    trainer = build.trainer(settings)
    asking = trainer.run()
    trainer.agent.train()
    batch, found = next(asking, None), []
    while batch is not None and len(found) < updates:
        parts = tmap(
            lambda x: x.double() if x.is_floating_point() else x.clone(), (batch.data, batch.knobs, batch.noise)
        )
        found.append((trainer.clock.state_dict(), Batch(*parts)))
        batch = sent(asking, trainer.update(batch))
    return found


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Callable[[config.Config[Any]], Trainer]:
    """Build trainers in double precision: there, what differs by more than rounding shows after 100 updates."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # which networks make of observations
    return _double


def _double(settings: config.Config[Any]) -> Trainer:
    single = build.trainer(settings)
    agent = single.agent.double().train()
    return Trainer(agent, single.source, Optim(agent, settings.optim), Clock(10_000, 10_000))


@pytest.mark.parametrize(
    ("recipe", "apart"),
    [
        pytest.param(recipe, apart, marks=[pytest.mark.slow] if recipe in SLOW else [])
        for recipe in RECIPES
        for apart in ((True, False) if recipe in {"cartpole_dqn", *SLOW} else (True,))
    ],
)
def test_a_hundred_updates_are_those_of_each_seed_alone(
    recipe: str, apart: bool, request: pytest.FixtureRequest
) -> None:
    overrides = {k: v for k, v in RECIPES[recipe].items() if apart or k != "optim.l2"}  # which makes two segments
    settings = [_settings(recipe, seed, **overrides) for seed in SEEDS]
    recorded = [_recorded(one, 100) for one in settings]
    double = request.getfixturevalue("double")
    alone, joint = ([double(one) for one in settings] for _ in range(2))
    for trainer in joint[1:] if apart else ():
        trainer.clock.horizon = 5_000  # schedules of their own
    for one, other in zip(alone, joint, strict=True):
        one.clock.horizon = other.clock.horizon
    stack = Stack(joint)
    for i, moment in enumerate(zip(*recorded, strict=True)):
        if i == 80:
            for trainers in (alone, joint):
                trainers[0].update(moment[0][1])  # by itself: from here on it has stepped once more than the others
        for (clock, _), *trainers in zip(moment, alone, joint, strict=True):
            for trainer in trainers:
                trainer.clock.load_state_dict(clock)
        batches = [batch for _, batch in moment]
        outs = stack.update(batches)
        for trainer, batch, out in zip(alone, batches, outs, strict=True):
            own = trainer.update(batch)
            torch.testing.assert_close(out.priority, own.priority)
            assert bool(out.stop) == bool(own.stop)
    for one, other in zip(alone, joint, strict=True):
        torch.testing.assert_close(other.agent.state_dict(), one.agent.state_dict(), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(other.meter.state_dict(), one.meter.state_dict())
        ours, theirs = (t.optim.state_dict() for t in (other, one))
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
        assert one.clock == other.clock


@pytest.mark.parametrize("recipe", ["cartpole_dqn", pytest.param("pendulum_td3", marks=pytest.mark.slow)])
def test_rows_that_nobody_looks_at_change_nothing(recipe: str, request: pytest.FixtureRequest) -> None:
    settings = [_settings(recipe, seed, **RECIPES[recipe]) for seed in SEEDS]
    recorded = [_recorded(one, 20) for one in settings]
    double = request.getfixturevalue("double")
    alone, joint = ([double(one) for one in settings] for _ in range(2))
    going = [0, 1, 2]
    stack = Stack(joint, size=5)
    for i, moment in enumerate(zip(*recorded, strict=True)):
        if i == 8:  # from here on moments come with the agents
            going = [0, 2]
            stack = Stack([joint[0], joint[2]], size=5)
        for k in going:
            for trainers in (alone, joint):
                trainers[k].clock.load_state_dict(moment[k][0])
        batches = [moment[k][1] for k in going]
        outs = stack.update(batches)
        for k, batch, out in zip(going, batches, outs, strict=True):
            torch.testing.assert_close(out.total, alone[k].update(batch).total, rtol=1e-8, atol=1e-8)
    for k in going:
        for name, x in joint[k].agent.state_dict().items():
            torch.testing.assert_close(x, alone[k].agent.state_dict()[name], rtol=1e-8, atol=1e-8)
        assert joint[k].meter.flush() == pytest.approx(alone[k].meter.flush(), rel=1e-6)


def test_rows_are_as_many_as_seeds_or_a_quarter_or_a_quarter_of_that() -> None:
    assert [together.rows(left, 10) for left in range(1, 11)] == [1, 3, 3, *[10] * 7]
    assert [together.rows(left, 30) for left in (1, 2, 3, 8, 9, 30)] == [1, 2, 8, 8, 30, 30]
    assert [together.rows(left, 2) for left in (1, 2)] == [1, 2]
    assert together.rows(1, 1) == 1


@pytest.mark.parametrize("recipe", ["cartpole_dqn", "pendulum_sac"])
def test_evaluations_are_played_at_once_and_are_those_of_each_alone(recipe: str) -> None:
    settings = [_settings(recipe, seed) for seed in SEEDS]
    trainers = [build.trainer(one) for one in settings]
    built: list[int] = []

    def wide(n: int) -> VectorEnv:
        built.append(n)
        return build.env(settings[0].env, "cpu", "validation", n)

    evaluations = Evaluations(wide)
    evaluations.stack = Stack(trainers)
    env = build.evaluation_env(settings[0], "validation", 6)
    how = (6, 2_000_000, 50, False, False)

    def same() -> None:
        for trainer in trainers:
            got, expected = (player(trainer.agent, env, *how) for player in (evaluations.play, play))
            assert torch.equal(got.lengths, expected.lengths)
            torch.testing.assert_close(got.returns, expected.returns)

    same()
    waves, _ = evaluations._played[how[:3]]
    assert built == [6 * len(SEEDS)] and len({tuple(one.returns.tolist()) for one in waves}) > 1
    same()
    assert evaluations._played[how[:3]][0] is waves  # nobody's weights have moved
    for parameter in trainers[1].agent.parameters():
        parameter.data.neg_()
    trainers[0].clock.frames += 1  # it is elsewhere: what is asked for now is played alone
    same()
    assert evaluations._played[how[:3]][0] is waves
    trainers[0].clock.frames -= 1
    same()
    assert evaluations._played[how[:3]][0] is not waves and len(built) == 1
    finals, loaded = (6, 3_000_000, 50, False, False), [copy.deepcopy(trainer.agent) for trainer in trainers]
    for done in (False, True):  # a copy has ended; the others' final episodes are played with its own if they have, too
        for trainer in trainers:
            trainer.clock.frames = trainer.clock.budget * done
        for agent in loaded:
            got, expected = (player(agent, env, *finals) for player in (evaluations.play, play))
            assert torch.equal(got.lengths, expected.lengths)
            torch.testing.assert_close(got.returns, expected.returns)
        assert (finals[:3] in evaluations._played) == done


def test_agents_whose_acts_read_more_than_their_tensors_are_evaluated_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [_settings("cartpole_dqn", seed) for seed in SEEDS]
    trainers = [build.trainer(one) for one in settings]
    kind = type(trainers[0].agent)
    act = kind.act

    def turned(self: Any, *given: Any, **more: Any) -> Any:
        out = act(self, *given, **more)
        return out._replace(action=1 - out.action) if self is trainers[1].agent else out

    monkeypatch.setattr(kind, "act", turned)
    evaluations = Evaluations(lambda n: build.env(settings[0].env, "cpu", "validation", n))
    evaluations.stack = Stack(trainers)
    env = build.evaluation_env(settings[0], "validation", 6)
    for trainer in trainers:
        trainer.agent.train()
        got, expected = (
            player(trainer.agent, env, 6, 2_000_000, 50, False, False) for player in (evaluations.play, play)
        )
        assert torch.equal(got.returns, expected.returns)
        assert trainer.agent.training


@pytest.mark.slow
def test_returns_come_from_the_same_distribution(tmp_path: Path) -> None:
    """Thirty seeds together against thirty others alone (two-sample Kolmogorov-Smirnov), in the middle of learning."""
    settings: dict[str, Any] = {"budget.frames": 6_000, "stop.metric": "", "eval.every": 0}
    settings |= {"eval.final_seed": 2_000_000, "compile": "off"}
    runs = together.train("cartpole_dqn", range(1000, 1030), out=tmp_path / "study", **settings)
    joint = [run.result["evaluation"]["mean"] for run in runs]
    single = [
        api.train("cartpole_dqn", out=tmp_path / str(seed), seed=seed, **settings).result["evaluation"]["mean"]
        for seed in range(1030, 1060)
    ]
    _, p = cast("tuple[float, float]", ks_2samp(joint, single))
    print(sorted(joint), sorted(single), p)
    assert len(set(joint)) > 20  # returns differ enough to tell distributions apart
    assert p > 0.05


def test_batches_of_different_shapes_are_learnt_from_alone(request: pytest.FixtureRequest) -> None:
    settings = [_settings("cartpole_dqn", seed, **{"source.learning_starts": 128}) for seed in SEEDS[:2]]
    recorded = [_recorded(one, 3) for one in settings]
    double = request.getfixturevalue("double")
    alone, joint = ([double(one) for one in settings] for _ in range(2))
    stack = Stack(joint)
    for k, ((_, first), (_, second)) in enumerate(zip(*recorded, strict=True)):
        if k == 1:
            second = Batch(*tmap(lambda x: x[:100] if x.dim() else x, (second.data, second.knobs, second.noise)))
        stack.update([first, second])
        for trainer, batch in zip(alone, (first, second), strict=True):
            trainer.update(batch)
    for one, other in zip(alone, joint, strict=True):
        torch.testing.assert_close(other.agent.state_dict(), one.agent.state_dict(), rtol=1e-8, atol=1e-8)


def test_every_seed_is_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, played = Evaluations._play, []
    monkeypatch.setattr(Evaluations, "_play", lambda self, asked: played.append(asked[1]) or at_once(self, asked))
    found = together.train("cartpole_dqn", SEEDS[:2], out=tmp_path / "study", **SMALL)
    assert [run.path for run in found] == [tmp_path / "study" / f"seed-{seed}" for seed in SEEDS[:2]]
    assert [run.config.seed for run in found] == SEEDS[:2]
    assert played == [found[0].config.eval.seed] * 2 + [2_000_000]  # all seeds' final episodes at once, too
    first = found[0].result
    assert first["status"] == "finished" and first["frames"] == 1024 and first["updates"] == 224
    again = api.evaluate(found[0].path)
    assert again["returns"] == first["evaluation"]["returns"]
    both = api.evaluate(str(tmp_path / "study" / "*"))
    assert both["returns"] == [run.result["evaluation"]["mean"] for run in found]
    alone = api.train("cartpole_dqn", out=tmp_path / "alone", seed=SEEDS[0], compile="off", **SMALL)
    weights, own = found[0].agent.state_dict(), alone.agent.state_dict()
    torch.testing.assert_close(weights, own, rtol=1e-3, atol=1e-3)  # the same seed: rounding alone differs


def _files(run: Path) -> dict[str, bytes]:
    newest = max((run / "checkpoints").glob("[0-9]*"))
    return {path.name: path.read_bytes() for path in sorted(newest.iterdir()) if path.suffix != ".json"}


@pytest.mark.parametrize(("repays", "choice"), [(225, "off"), (224, "on")])
def test_interrupted_studies_go_on_where_they_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repays: int, choice: str
) -> None:
    monkeypatch.setattr(compiling, "REPAYS", repays)  # 224 updates are planned
    whole = together.train("cartpole_dqn", SEEDS[:2], out=tmp_path / "whole", **SMALL)
    update, count = Stack.update, 0

    def interrupting(stack: Stack, batches: Any) -> Any:
        nonlocal count
        count += 1
        for trainer in stack.trainers:
            trainer.interrupted |= count == 40
        return update(stack, batches)

    monkeypatch.setattr(Stack, "update", interrupting)
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt, match=f"--seeds 1000-1001 --resume --out {cut}"):
        together.train("cartpole_dqn", SEEDS[:2], out=cut, **SMALL)
    assert json.loads((cut / "seed-1001" / "result.json").read_text())["status"] == "interrupted"
    monkeypatch.undo()
    resumed = together.train(cut, SEEDS[:2], resume=True)  # what was chosen is kept
    for one, other in zip(whole, resumed, strict=True):
        assert one.config.compile == other.config.compile == choice
        for (name, a), b in zip(one.agent.state_dict().items(), other.agent.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("recipe", ["cartpole_dqn", "pendulum_sac"])
def test_compiled_updates_are_the_uncompiled_ones(recipe: str) -> None:
    settings = [_settings(recipe, seed, **RECIPES[recipe]) for seed in SEEDS]
    recorded = [_recorded(one, 20) for one in settings]
    plain, compiled = (Stack([build.trainer(one) for one in settings], compiled=on) for on in (None, {}))
    for moment in zip(*recorded, strict=True):
        singles = [Batch(*tmap(_single, (b.data, b.knobs, b.noise))) for _, b in moment]
        for stack in (plain, compiled):
            for (clock, _), trainer in zip(moment, stack.trainers, strict=True):
                trainer.clock.load_state_dict(clock)
            stack.update(singles)
        for one, other in zip(plain.trainers, compiled.trainers, strict=True):
            torch.testing.assert_close(other.agent.state_dict(), one.agent.state_dict(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(other.meter.state_dict(), one.meter.state_dict(), rtol=1e-4, atol=1e-4)
    assert all("traced" not in call.__qualname__ for _, call in compiled._graphs.values()), "something is not compiled"
    assert all("traced" in call.__qualname__ for _, call in plain._graphs.values())


@pytest.mark.parametrize("compiler", ["none", pytest.param("torch's", marks=pytest.mark.slow)])
def test_a_compiled_study_goes_past_seeds_that_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    """One of five ends every 256 frames, the second of NaN: compiled for five, two and one rows, and each once."""
    compile_graph, update, compiled = compiled_graph.compile_graph, Stack.update, list[int]()

    def counted(function: Any, given: Any) -> Any:
        compiled.append(len(given[0]))
        if compiler == "none":
            return traced(lambda tensors: function(*tensors), given)
        return compile_graph(function, given)

    def ending(stack: Stack, batches: Any) -> Any:
        first = stack.trainers[0]
        if first.clock.frames >= 512 + 256 * (5 - len(stack.trainers)) and len(stack.trainers) > 1:
            if len(stack.trainers) == 4:
                first.optim.groups["main"].flat.data[0] = torch.nan
            else:
                first.stopping = "test"
        return update(stack, batches)

    monkeypatch.setattr(compiled_graph, "compile_graph", counted)
    monkeypatch.setattr(Stack, "update", ending)
    seeds = range(1000, 1005)
    frames = {**SMALL, "budget.frames": 2048, "compile": "on"}
    with pytest.raises(Diverged, match="1 of 5 seeds failed, first seed 1001"):
        together.train("cartpole_dqn", seeds, out=tmp_path / "study", **frames)
    assert compiled == [5, 2, 1]
    found = {seed: json.loads((tmp_path / f"study/seed-{seed}/result.json").read_text()) for seed in seeds}
    assert [found[seed]["status"] for seed in seeds] == ["finished", "failed", *["finished"] * 3]
    frames = [found[seed]["frames"] for seed in seeds if seed != 1001]
    assert frames == sorted(set(frames)) and frames[-1] == 2048  # each at its moment
    for seed in (1000, 1002, 1004):  # those that end are saved as they were
        again = api.evaluate(tmp_path / f"study/seed-{seed}", episodes=2, seed=2_000_000)
        assert again["returns"] == found[seed]["evaluation"]["returns"]


@pytest.mark.parametrize("compiler", ["none", pytest.param("torch's", marks=pytest.mark.slow)])
def test_a_compiled_study_resumed_after_a_seed_has_ended_goes_on_as_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    if compiler == "none":
        monkeypatch.setattr(
            compiled_graph, "compile_graph", lambda run, given: traced(lambda tensors: run(*tensors), given)
        )
    update, stacks = Stack.update, list[tuple[int, int]]()

    def ending(stack: Stack, batches: Any) -> Any:
        stacks.append((len(stack.trainers), stack.size))
        first = stack.trainers[0]
        if len(stack.trainers) == 3 and first.clock.frames >= 512:
            first.stopping = "test"
        for trainer in stack.trainers:
            trainer.interrupted |= trainer.clock.frames == interrupt
        return update(stack, batches)

    monkeypatch.setattr(Stack, "update", ending)
    settings, interrupt = {**SMALL, "compile": "on"}, 0
    whole = together.train("cartpole_dqn", SEEDS, out=tmp_path / "whole", **settings)
    interrupt = 768
    with pytest.raises(KeyboardInterrupt):
        together.train("cartpole_dqn", SEEDS, out=tmp_path / "cut", **settings)
    stacks.clear()
    interrupt = 0
    resumed = together.train(tmp_path / "cut", SEEDS, resume=True)
    assert set(stacks) == {(2, 3)}
    for one, other in zip(whole, resumed, strict=True):
        assert (one.result["frames"], one.result["updates"]) == (other.result["frames"], other.result["updates"])
        for (name, a), b in zip(one.agent.state_dict().items(), other.agent.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


def _single(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.is_floating_point() else x


def test_losses_that_cannot_be_compiled_are_traced_and_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(compiled_graph, "compile_graph", broken)
    settings = [_settings("cartpole_dqn", seed, **{"source.learning_starts": 128}) for seed in SEEDS[:2]]
    stack = Stack([build.trainer(one) for one in settings], compiled={})
    stack.update([next(trainer.run()) for trainer in stack.trainers])
    assert capsys.readouterr().err.count("DQN.loss of 2 seeds runs uncompiled: RuntimeError: no such instruction") == 1


def test_a_seed_that_meets_nan_leaves_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Stack.update

    def breaking(stack: Stack, batches: Any) -> Any:
        broken = stack.trainers[0]
        if len(stack.trainers) == 3 and broken.clock.updates == 30:
            broken.optim.groups["main"].flat.data[0] = torch.nan
        return update(stack, batches)

    monkeypatch.setattr(Stack, "update", breaking)
    with pytest.raises(Diverged, match=r"1 of 3 seeds failed, first seed 1000: .* became NaN"):
        together.train("cartpole_dqn", SEEDS, out=tmp_path / "study", **SMALL)
    status = [json.loads((tmp_path / "study" / f"seed-{s}" / "result.json").read_text())["status"] for s in SEEDS]
    assert status == ["failed", "finished", "finished"]
    monkeypatch.undo()
    alone = api.train("cartpole_dqn", out=tmp_path / "alone", seed=SEEDS[2], compile="off", **SMALL)
    weights = api.load(tmp_path / "study" / f"seed-{SEEDS[2]}").agent.state_dict()
    torch.testing.assert_close(weights, alone.agent.state_dict(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("cartpole_dqn", {"optim.accumulate": 2}, "optim.accumulate is above 1"),
        ("cartpole_dqn", {"optim.precision": "bf16"}, "optim.precision is not fp32"),
        ("cartpole_dqn", {"seed": 3}, "--seeds: got --seed beside it"),
        ("digits_resnet", {}, "layer BatchNorm2d"),
        ("digits_vit", {"agent.network.kwargs.dropout": 0.1}, "layer Dropout|called random operation"),
    ],
)
def test_what_is_trained_alone_is_said(tmp_path: Path, recipe: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        together.train(recipe, [1000, 1001], out=tmp_path / "study", **overrides)


def test_an_agent_whose_loss_reads_more_than_its_tensors_is_refused() -> None:
    trainers = [build.trainer(_settings("cartpole_dqn", seed, **{"source.learning_starts": 128})) for seed in SEEDS[:2]]
    for k, trainer in enumerate(trainers):
        trainer.agent.config = trainer.agent.config.model_copy(update={"loss": ("mse", "huber")[k]})
        with torch.no_grad():
            nn.init.constant_(trainer.agent.online.advantage.bias, 10.0)  # type: ignore[union-attr]
    asking = [trainer.run() for trainer in trainers]
    with pytest.raises(UserError, match="its loss depends on more than its tensors and the batch"):
        Stack(trainers).update([next(one) for one in asking])


@pytest.mark.parametrize(("text", "expected"), [("3", [0, 1, 2]), ("1000-1001", [1000, 1001]), ("7-7", [7])])
def test_seeds_are_read(text: str, expected: list[int]) -> None:
    assert together.seeds(text) == expected


@pytest.mark.parametrize("text", ["0", "a", "3-1", "-1", "1,2"])
def test_bad_seeds_are_told(text: str) -> None:
    with pytest.raises(UserError, match=f"--seeds: got '{text}', expected a number of seeds or A-B"):
        together.seeds(text)


def test_traced_operations_are_those_of_the_function() -> None:
    def function(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        x, w, b = (tensor.detach().requires_grad_() for tensor in tensors)
        y = torch.baddbmm(b, x, w)
        normal = torch.native_layer_norm(y, [5], None, None, 1e-2)[0]
        out = torch.relu(y) + y.square() + torch.relu(torch.baddbmm(b, normal[..., :3], w))
        return [out.detach(), *torch.autograd.grad(out.sum(), [x, w, b])]

    tensors = [torch.randn(2, 4, 3), torch.randn(2, 3, 5), torch.randn(2, 1, 5)]
    torch.testing.assert_close(traced(function, tensors)(tensors), function(tensors))
