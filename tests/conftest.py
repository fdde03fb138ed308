"""What tests of whole runs share: commands called as the scripts call them, and small runs."""

from __future__ import annotations

import csv
import json
import runpy
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rlcore
from rlcore import checkpoint
from rlcore.testing.agents import first_difference

SCRIPTS = Path(__file__).parent.parent / "scripts"

# A small DQN whose run of 600 frames takes a fraction of a second.
SMALL: dict[str, Any] = {
    "env.num_envs": 4,
    "agent.network.kwargs.hidden": [16],
    "source.learning_starts": 100,
    "source.batch_size": 16,
    "source.updates_per_frame": 0.2,
    "source.capacity": 1000,
    "source.frames_per_iteration": 4,
    "budget.frames": 600,
    "eval.every": 0,
    "stop.metric": "",
    "budget.horizon": None,
    "eval.final_episodes": 5,
    "log.every": 100,
    "checkpoint.every": 200,
}


class Called(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Called]


def options(settings: dict[str, Any]) -> list[str]:
    """Return settings as they are written on a command line."""
    return [f"--{name}={json.dumps(value)}" for name, value in settings.items()]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Weights and draws of torch's own generator are a test's alone, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a script by name, in this process and an empty folder; anything but its own exit is a failure."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *argv: str | Path) -> Called:
        monkeypatch.setattr("sys.argv", [f"scripts/{name}.py", *map(str, argv)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        out, err = capsys.readouterr()
        return Called(int(left.value.code or 0), out, err)

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 600 frames with evaluations; tests read it and leave it as it is."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    fast = {"optim.lr": 0.03}  # so that no two of its checkpoints play alike
    rlcore.train("cartpole_dqn", out=out, **{**SMALL, **fast, "eval.every": 200, "eval.episodes": 2})
    return out


@pytest.fixture(scope="session")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of house_prices."""
    out = tmp_path_factory.mktemp("runs") / "regression"
    rlcore.train("house_prices", out=out, **{"budget.frames": 6500, "eval.every": 0})
    return out


def rows(run: Path, *left_out: str) -> list[dict[str, str]]:
    """Return the rows of progress.csv but for the time columns and those that begin with ``left_out``."""
    with (run / "progress.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if not k.startswith(("time/", *left_out))} for row in csv.DictReader(file)
        ]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows by tag, but for the time tags; no tag may have a step twice."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        points = [(event.step, event.value) for event in events.Scalars(tag)]
        assert len({step for step, _ in points}) == len(points), f"{tag} has a step twice"
        if not tag.startswith("time/"):
            found[tag] = points
    return found


def assert_same_run(one: Path, other: Path) -> None:
    """Two runs wrote the same, bit for bit: last checkpoint, progress.csv and TensorBoard, but for times."""
    first, second = (checkpoint.load(run / "checkpoints") for run in (one, other))
    assert first_difference(first.agent, second.agent) is None
    states = [{k: v for k, v in c.state.items() if k not in ("train_seconds", "callbacks")} for c in (first, second)]
    assert first_difference(*states) is None
    assert rows(one) == rows(other)
    assert scalars(one) == scalars(other)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what is traced operation by operation: all of compiling but the generation of code, which takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says of its own parts
        import torch._inductor.compile_fx

    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graph)
    monkeypatch.setattr(
        torch._inductor.compile_fx,
        "compile_fx_inner",
        lambda graph, inputs: SimpleNamespace(current_callable=lambda x: graph(*x)),
    )
