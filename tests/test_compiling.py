"""Compiled updates learn what uncompiled ones do, on the same batches; runs choose once whether to compile."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_optim
import test_resume
import torch
from conftest import SMALL, assert_same_run

import rlcore
from agents.configs.value import PQNConfig
from agents.pqn import PQN
from envs.cartpole import CartPole
from rlcore import build, compiled_acting, compiled_graph, compiling, config
from rlcore.actor import Actor, is_empty
from rlcore.clock import Clock
from rlcore.config import NetworkConfig, OptimConfig
from rlcore.errors import UserError
from rlcore.native import BatchedEnv
from rlcore.normalize import Normalizer
from rlcore.optim import Optim
from rlcore.schedules import Schedule
from rlcore.trainer import Trainer
from rlcore.tree import tmap
from rlcore.types import Act, Batch, Loss

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **test_resume.CASES,
    "transformer-dropout": (
        "digits_vit",
        {
            "agent.network.kwargs": {"layers": 1, "heads": 2, "width": 8, "dropout": 0.3},
            "optim": {"name": "adamw", "weight_decay": 0.1, "clip": 1.0},
            "source.batch_size": 8,
        },
    ),
    "dqn-decay": (
        "cartpole_dqn",
        {**test_resume.CASES["dqn-segments"][1], "optim.accumulate": 1, "optim.precision": "fp32", "optim.clip": 0.5},
    ),
    "ddpg": ("pendulum_ddpg", {**test_resume.REPLAY}),
    "language-model": ("shakespeare", {"agent.network.kwargs": {"layers": 1, "heads": 2, "width": 16, "dropout": 0.2}}),
}
QUICK = ["dqn-prioritized", "dqn-segments", "pqn", "td3-pendulum", "transformer-dropout", "dqn-accumulate", "r2d2"]


def _trainer(case: str, compile: str) -> Trainer:
    recipe, overrides = CASES[case]
    settings = config.override(config.read(recipe), {**overrides, "compile": compile, "seed": 1234})
    trainer = build.trainer(config.validate(settings))
    trainer.agent.train()
    return trainer


def _batches(trainer: Trainer, count: int) -> Iterator[Batch]:
    while True:
        for batch in trainer.source.collect(trainer.agent, trainer.clock):
            yield batch
            count -= 1
            if not count:
                return
        trainer.clock.iterated = trainer.clock.frames


def _assert_same_updates(case: str, updates: int) -> None:
    near: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
    plain, compiled = _trainer(case, "off"), _trainer(case, "on")
    compiled.agent.load_state_dict(plain.agent.state_dict())
    try:
        for batch in _batches(plain, updates):
            for one, other in zip(plain.agent.modules(), compiled.agent.modules(), strict=True):
                if isinstance(one, Normalizer):  # the source taught the one that acts
                    other.load_state_dict(one.state_dict())
            stream = torch.get_rng_state()
            out, stepped = plain.optim.update(plain.agent, batch, plain.clock)
            after = torch.get_rng_state()
            torch.set_rng_state(stream)
            again, also = compiled.optim.update(compiled.agent, batch, plain.clock)
            assert torch.equal(torch.get_rng_state(), after), "dropout left the stream elsewhere"
            assert stepped == also
            torch.testing.assert_close(again.metrics, out.metrics, **near)
            torch.testing.assert_close(again.priority, out.priority, **near)
            assert bool(again.stop) == bool(out.stop)
            plain.source.feedback(batch, out)
            if stepped:
                plain.clock.updates += 1
                plain.agent.after_update(plain.clock)
                compiled.agent.after_update(plain.clock)
                plain.clock.updated = plain.clock.frames
            torch.testing.assert_close(dict(compiled.agent.state_dict()), dict(plain.agent.state_dict()), **near)
        torch.testing.assert_close(_moments(compiled.optim), _moments(plain.optim), **near)
        assert all(group.compiled for group in compiled.optim.groups.values()), "something ran uncompiled"
        assert compiled.optim.compiler is not None and None not in compiled.optim.compiler.updates.values()
    finally:
        plain.source.env.close()
        compiled.source.env.close()


def _frames(budget: int) -> dict[str, Any]:
    return {"budget.frames": budget, "eval.final_episodes": 1}


def _moments(optim: Optim) -> dict[str, Any]:
    return {name: {**state, "compiled": None} for name, state in optim.state_dict().items()}


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in sorted(CASES)]
)
def test_what_is_traced_is_the_update(case: str) -> None:
    _assert_same_updates(case, 8)


COMPILED = ["dqn-decay", "dqn-accumulate", "td3-pendulum", "sac-pendulum", "transformer-dropout", "ppo-native", "pqn"]


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED)
def test_what_is_compiled_is_the_update(case: str) -> None:
    _assert_same_updates(case, 20)


def _assert_same_acts(case: str, steps: int = 50) -> None:
    near: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
    plain, compiled = both = _trainer(case, "off"), _trainer(case, "on")
    sources: Any = [trainer.source for trainer in both]
    compiled.agent.load_state_dict(plain.agent.state_dict())
    rng = torch.Generator().manual_seed(1)
    try:
        for trainer in both:
            trainer.source.annealed(trainer.agent, trainer.clock)
        for i in range(steps // 5):
            acting = zip(sources, both, strict=True)
            one, other = (s.act(t.agent, t.clock, 5, random_until=9) for s, t in acting)
            torch.testing.assert_close(tuple(other.act), tuple(one.act), **near)
            torch.testing.assert_close(tuple(other.step), tuple(one.step), **near)
            torch.testing.assert_close((other.obs, other.state), (one.obs, one.state), **near)
            if i % 2:  # weights, statistics and knobs of the moment count, not those that were compiled with
                for p, q in zip(plain.agent.parameters(), compiled.agent.parameters(), strict=True):
                    p.data += 0.1 * torch.randn(p.shape, generator=rng)
                    q.data.copy_(p.data)
                for source, trainer in zip(sources, both, strict=True):
                    trainer.agent.observe(tmap(lambda x: x.flatten(0, 1), one.obs))
                    for knob in source.knobs.values():
                        knob.mul_(0.9)
        actor = sources[1].actor
        assert actor.plays is not None and actor.plays[0] is compiled.agent
        if isinstance(actor.env, BatchedEnv) and is_empty(actor.state):
            assert actor.plays[1] is not None, "it ran uncompiled"
        else:
            assert actor.plays[1] is None
            assert actor.acts[0] is compiled.agent and "_compiled" in actor.acts[1].__qualname__, "it ran uncompiled"
        assert sources[0].actor.plays is sources[0].actor.acts is None
    finally:
        for source in sources:
            source.env.close()


def _acts(case: str) -> bool:
    settings = config.validate(config.override(config.read(CASES[case][0]), CASES[case][1]))
    return settings.source.name != "dataset" and not getattr(settings.source, "overlap", False)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    "case",
    [
        case if case in ("dqn-prioritized", "ppo-native", "pqn") else pytest.param(case, marks=pytest.mark.slow)
        for case in sorted(filter(_acts, CASES))
    ],
)
def test_what_is_traced_is_the_act(case: str) -> None:
    _assert_same_acts(case)


@pytest.mark.parametrize(
    "case", ["dqn-native", "ppo-native", *(pytest.param(x, marks=pytest.mark.slow) for x in ("ppo-memory", "r2d2"))]
)
def test_what_is_compiled_is_the_act(case: str) -> None:
    _assert_same_acts(case)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cartpole_bc", "cartpole_cql", "pendulum_iql", "pendulum_cql"])
@pytest.mark.usefixtures("interpreted")
def test_agents_of_recorded_data(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = "cartpole_dqn" if recipe.startswith("cartpole") else "pendulum_sac"
    run = rlcore.train(env, out=tmp_path / "run", **_frames(200))
    rlcore.record(run.path, tmp_path / "data.npz", episodes=2, explore=True)
    overrides = {"source.data": str(tmp_path / "data.npz"), "source.batch_size": 16}
    monkeypatch.setitem(CASES, "recorded", (recipe, overrides))
    _assert_same_updates("recorded", 6)


def _both(settings: OptimConfig, agent: Any = test_optim.Regressor) -> tuple[Any, Optim, Any, Optim]:
    plain, compiled = test_optim.make(agent).double(), test_optim.make(agent).double()
    return plain, Optim(plain, settings), compiled, Optim(compiled, settings, compiled=True)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "clip": 0.1, "scale": {"net.2.*": 3.0}},
    {"l1": 0.01, "l2": 0.1, "decay": "all", "clip_value": 0.02},
    {"accumulate": 2, "clip": 0.1},
]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options), "none"))
@pytest.mark.parametrize("name", sorted(test_optim.TORCH))
def test_every_optimiser_with_every_option(name: Any, options: dict[str, Any]) -> None:
    momentum = 0.9 if name in ("sgd", "rmsprop") else 0.0
    schedule = Schedule(kind="linear", start=1.0, end=0.1)
    settings = OptimConfig(name=name, lr=0.05, momentum=momentum, schedule=schedule, **options)
    plain, optim, again, compiled = _both(settings)
    for i in range(12):
        clock = Clock(12, 12, iterated=i)  # a rate of its own every time
        batch = test_optim.double(test_optim.batch(7, i))
        out, stepped = optim.update(plain, batch, clock)
        other, also = compiled.update(again, batch, clock)
        assert stepped == also
        torch.testing.assert_close(other.metrics, out.metrics, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(test_optim.weights(again), test_optim.weights(plain), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(_moments(compiled), _moments(optim), rtol=1e-9, atol=1e-12)
    assert compiled.groups["main"].compiled
    assert compiled.groups["main"].whole == ("accumulate" not in options), "the optimiser's step is compiled, too"


@pytest.mark.parametrize("name", ["adam", "radam"])
def test_generated_code_learns_as_the_module_does(name: Any) -> None:
    settings = OptimConfig(name=name, lr=0.05, clip=0.1, schedule=Schedule(kind="linear", start=1.0, end=0.1))
    plain, optim, again, compiled = _both(settings)
    for i in range(20):
        batch, clock = test_optim.double(test_optim.batch(7, i)), Clock(20, 20, iterated=i)
        out, _ = optim.update(plain, batch, clock)
        other, _ = compiled.update(again, batch, clock)
        torch.testing.assert_close(other.metrics, out.metrics, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(test_optim.weights(again), test_optim.weights(plain), rtol=1e-9, atol=1e-12)
    assert compiled.compiler is not None and None not in compiled.compiler.updates.values()


@pytest.mark.usefixtures("interpreted")
def test_sgd_without_momentum_keeps_nothing_and_is_compiled_at_once() -> None:
    plain, optim, again, compiled = _both(OptimConfig(name="sgd", lr=0.1))
    batch = test_optim.double(test_optim.batch(4, 0))
    optim.update(plain, batch, Clock(1, 1))
    compiled.update(again, batch, Clock(1, 1))
    assert compiled.groups["main"].compiled
    torch.testing.assert_close(test_optim.weights(again), test_optim.weights(plain))


@pytest.mark.usefixtures("interpreted")
def test_shapes_beyond_a_few_run_uncompiled_and_a_resume_chooses_alike() -> None:
    settings = OptimConfig(name="sgd", lr=0.1)
    _, _, agent, optim = _both(settings)
    assert optim.compiler is not None
    for size in (1, 2, 3, 4, 5, 6, 1):
        optim.update(agent, test_optim.double(test_optim.batch(size, 0)), Clock(1, 1))
    assert len(optim.compiler.updates) == compiling.SHAPES
    _, _, agent, resumed = _both(settings)
    resumed.load_state_dict(copy.deepcopy(optim.state_dict()))
    assert resumed.compiler is not None
    for size in (6, 5, 4):
        resumed.update(agent, test_optim.double(test_optim.batch(size, 0)), Clock(1, 1))
    assert len(resumed.compiler.updates) == 1, "only the batch of four had been compiled"


class Waits(test_optim.Regressor):
    """Its loss needs a value in the middle."""

    def loss(self, batch: Batch) -> Loss:
        out = super().loss(batch)
        return out if out.total.item() > 0 else out._replace(total=-out.total)


class Hidden(test_optim.Regressor):
    """Keeps its weights where no module knows of them."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = [self.net[2].weight]

    def loss(self, batch: Batch) -> Loss:
        out = super().loss(batch)
        return out._replace(total=out.total * self.kept[0].square().sum())


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("agent", "why"), [(Waits, "Waits.loss runs uncompiled"), (Hidden, "read as a constant")])
def test_what_cannot_be_traced_runs_uncompiled_and_is_told(
    agent: Any, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, optim, again, compiled = _both(OptimConfig(name="sgd", lr=0.1), agent)
    for i in range(3):
        batch = test_optim.double(test_optim.batch(4, i))
        optim.update(plain, batch, Clock(1, 1))
        compiled.update(again, batch, Clock(1, 1))
    assert torch.equal(test_optim.weights(again), test_optim.weights(plain))
    assert capsys.readouterr().err.count(why) == 1


@pytest.mark.parametrize("shape", [(1, 256, 256), (8, 64, 128), (3, 700, 2), (1, 1, 1)])
def test_a_small_product_is_a_sum_and_a_large_one_is_left_to_the_compiler(shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    rng = torch.Generator().manual_seed(3)
    bias, x, weight = (torch.randn(size, generator=rng) for size in (outputs, (rows, inputs), (inputs, outputs)))
    torch.testing.assert_close(compiled_acting.product(bias, x, weight), torch.addmm(bias, x, weight))
    wide = torch.randn(compiled_acting.SMALL // rows + 1, outputs, generator=rng)
    large = torch.randn(rows, len(wide), generator=rng)
    for given in ((bias, large, wide), (bias, x, weight, 2.0), (bias, x, weight, 1.0, 2.0)):
        args, scales = given[:3], dict(zip(("beta", "alpha"), given[3:], strict=False))
        assert compiled_acting.product(*args, **scales) is NotImplemented


class Looks(PQN):
    """Its act needs a value in the middle."""

    def act(self, obs: Any, *more: Any, **options: Any) -> Act:
        return super().act(obs.abs() if obs.sum().item() > 0 else -obs.abs(), *more, **options)


@pytest.mark.usefixtures("interpreted")
def test_an_act_that_cannot_be_traced_runs_uncompiled_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    env = CartPole(3)
    agent = Looks(PQNConfig(network=NetworkConfig(name="mlp", kwargs={"hidden": [8]})), env.spec)
    knobs = {"epsilon": torch.tensor(0.5)}
    actions = []
    for compiled in (False, True):
        actor = Actor(CartPole(3), 0)
        actor.compiled = compiled
        (acted,) = actor.steps(agent, knobs, 20)
        actions.append(acted.act.action)
    assert torch.equal(*actions)
    told = capsys.readouterr().err
    assert told.count("steps of CartPole run uncompiled") == told.count("Looks.act runs uncompiled") == 1


@pytest.mark.parametrize(
    ("recipe", "overrides", "updates"),
    [
        ("cartpole_dqn", {}, (50_000 - 1_000) * 0.25),
        ("cartpole_dqn", {"budget.horizon": None, "optim.accumulate": 7}, 7_000),
        ("cartpole_ppo", {"budget.frames": 1024, "source.epochs": 3}, None),
        ("house_prices", {"budget.frames": 3_200, "source.batch_size": 32}, 100),
    ],
)
def test_planned_updates(recipe: str, overrides: dict[str, Any], updates: float | None) -> None:
    made = config.validate(config.override(config.read(recipe), overrides))
    if updates is None:
        source: Any = made.source
        updates = 1024 / source.horizon / made.env.num_envs * 3 * source.minibatches
    if "budget.horizon" in overrides:
        source = made.source
        updates = (made.budget.frames - source.learning_starts) * source.updates_per_frame / 7
    assert compiling.planned_updates(made) == pytest.approx(updates)


def test_auto_compiles_what_repays_it_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def choice(why: str | None = None, **overrides: Any) -> str:
        monkeypatch.setattr(compiling, "why_not", lambda device: why)
        return compiling.resolved(config.validate(config.override(config.read("cartpole_dqn"), overrides))).compile

    long: dict[str, Any] = {"budget.frames": 2_000_000, "budget.horizon": 2_000_000}
    assert choice() == "off"  # `make train` starts at once
    assert choice(**long) == "on"
    assert choice("there is no compiler", **long) == "off"
    assert choice(compile="off", **long) == "off"
    assert choice(compile="on") == "on"
    assert choice(compile=True) == "on"  # as YAML reads on
    with pytest.raises(UserError, match=r"^compile: got 'on', expected off: there is no compiler$"):
        choice("there is no compiler", compile="on")


def test_a_compiler_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    compiling.why_no_cpp.cache_clear()
    assert compiling.why_not("cpu") == "the C++ compiler false fails"
    monkeypatch.setenv("CXX", "no-such-compiler")
    compiling.why_no_cpp.cache_clear()
    assert compiling.why_not("cpu") == "no C++ compiler is installed (looked for no-such-compiler)"
    compiling.why_no_cpp.cache_clear()


@pytest.mark.usefixtures("interpreted")
def test_a_run_keeps_its_choice_and_goes_on_exactly(tmp_path: Path) -> None:
    settings: dict[str, Any] = {**SMALL, "compile": "on", "budget.horizon": 600, **_frames(600)}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    rlcore.train("cartpole_dqn", out=whole, **settings)
    rlcore.train("cartpole_dqn", out=cut, **{**settings, "budget.frames": 400})
    rlcore.train(out=cut, resume=True, **_frames(600))
    assert config.read(cut)["compile"] == "on"
    assert_same_run(whole, cut)


def test_a_run_from_before_is_not_compiled(finished: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "old"
    shutil.copytree(finished, run)
    text = (run / "config.yaml").read_text()
    assert "compile: 'off'" in text
    (run / "config.yaml").write_text(text.replace("compile: 'off'\n", ""))
    rlcore.train(out=run, resume=True, **_frames(800))
    assert config.read(run)["compile"] == "off"
    assert config.read(rlcore.train(out=run, resume=True, compile="off", **_frames(1000)).path)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dqn-native", "transformer-dropout"])
def test_killed_and_resumed_compiled_equals_never_interrupted(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, overrides = CASES[case]
    longer = {"budget.frames": 8_000, "checkpoint.every": 2_000} if case == "transformer-dropout" else {}
    monkeypatch.setitem(test_resume.CASES, case, (recipe, {**overrides, **longer, "compile": "on"}))
    test_resume.test_killed_and_resumed_equals_never_interrupted(case, tmp_path)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("table", [None, {}], ids=["with gradients", "without"])
@pytest.mark.parametrize("read", [(), (1,), (0, 2)])
def test_a_graph_may_read_any_of_its_inputs(read: tuple[int, ...], table: Any) -> None:
    given = [torch.full((2,), 10.0**i) for i in range(3)]
    run = compiled_graph.compile_graph(lambda *x: [sum([x[i] for i in read], torch.ones(2))], given, table)
    assert torch.equal(run(given)[0], torch.full((2,), 1.0 + sum(10.0**i for i in read)))
