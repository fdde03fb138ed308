"""Every mistake and mishap ends in one sentence, exit code 2, no traceback, and nothing lost."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import SMALL, Called, Command, options
from gymnasium import spaces

import rlcore
from rlcore import api, checkpoint, cli, registry, runs
from rlcore.errors import UserError
from rlcore.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent


def sentence(done: Called) -> str:
    """Return the one sentence that a failed command printed."""
    assert done.code == 2, done
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


# Settings

BAD_SETTINGS = [
    ("--optm.lr=1", "argument '--optm.lr=1' is not known; did you mean 'optim'?"),
    ("--rseume", "argument '--rseume' is not known; did you mean 'resume'?"),
    ("--optim.lrr=1", "optim.lrr is not a setting; did you mean 'lr'?"),
    ("--agent.target_evry=1", "agent.target_evry is not a setting; did you mean 'target_every'?"),
    ("--source.capcity=9", "source.capcity is not a setting; did you mean 'capacity'?"),
    ("--seed=x", "seed: got 'x', expected a valid integer"),
    ("--seed=1.5", "seed: got 1.5, expected a valid integer"),
    ("--env.num_envs=-4", "env.num_envs: got -4, expected greater than or equal to 1"),
    ("--budget.frames=0", "budget.frames: got 0, expected greater than or equal to 1"),
    ("--optim.lr=.nan", "optim.lr: got nan, expected a finite number"),
    ("--optim.lr=-1", "optim.lr: got -1, expected greater than 0"),
    ("--optim.lr=[1", "--optim.lr: got '[1', expected YAML, did not find expected ',' or ']'"),
    ("--optim.lr", "argument --optim.lr: has no value; expected --optim.lr=VALUE"),
    ("--seed --quiet", "argument --seed: has no value; expected --seed=VALUE"),
    ("--out", "argument --out: expected one argument"),
    ("--optim.name=adm", "optim.name: got 'adm', expected 'sgd', 'adam', 'adamw', 'rmsprop', 'radam' or 'adagrad'"),
    ("--agent.loss=hubr", "agent.loss: got 'hubr', expected 'huber' or 'mse'"),
    ("--agent.epsilon=1.5", "agent.epsilon: got 1.5, expected start and end from 0 to 1"),
    ("--agent.name=dqm", "agent 'dqm' is unknown; did you mean 'dqn'?"),
    ("--agent.network.name=mpl", "network 'mpl' is unknown; did you mean 'mlp'?"),
    (
        "--agent.network.kwargs.hiden=[3]",
        "network.kwargs.hiden is not an option of network 'mlp'; did you mean 'hidden'?",
    ),
    ("--agent.network.kwargs.hidden=[-3]", "network.kwargs.hidden: got [-3], expected a list of positive integers"),
    ("--agent.network.kwargs.activation=rely", "network.kwargs.activation 'rely' is unknown; did you mean 'relu'?"),
    ("--env.id=CartPol-v1", "environment 'CartPol-v1' is unknown; did you mean 'CartPole-v1'?"),
    ("--env.kwargs.gravty=3", "environment 'CartPole-v1': unknown keyword 'gravty'; did you mean 'gravity'?"),
    ("--env.wrappers=[TimeLimit]", "env.wrappers.0: got 'TimeLimit', expected a valid dictionary"),
    ("--env.wrappers=[{nme:\\ X}]", "env.wrappers: got [{'nme': 'X'}], expected mappings with a name"),
    ("--env.wrappers=[{name:\\ TimeLimt}]", "wrapper 'TimeLimt' is unknown; did you mean 'TimeLimit'?"),
    ("--env.wrappers=[{name:\\ TimeLimit,max_steps:\\ 3}]", "wrapper 'TimeLimit': unknown keyword 'max_steps'"),
    ("--env.id=Pendulum-v1", "agent 'dqn' cannot serve action space Box(-2.0, 2.0, (1,), float32); expected Discrete"),
    ("--source.name=dataset", "source.name: got 'dataset', expected replay or rollout for agent 'dqn'"),
    ("line --source.name=replay", "source.name: got 'replay', expected dataset for agent 'supervised'"),
    ("--agent.name=supervised --source.name=dataset", "an environment without labelled examples"),
    ("--source.capacity=3 --env.num_envs=16", "capacity is 3; expected at least num_envs = 16 transitions"),
    ("--source.capacity=1000000000000000", "lower capacity"),
    ("--env.num_envs=100000000000", "memory: a tensor of 745.1 GiB does not fit; lower env.num_envs"),
    (
        "--source.name=rollout --agent.n_step=1 --source.minibatches=9 --env.num_envs=1 --source.horizon=8",
        "minibatches: got 9, expected at most the 8 steps",
    ),
    ("--device=gpu", "device: got 'gpu', expected cpu, cuda, cuda:N or mps"),
    ("--stop.metric=return", "stop.metric: got 'return', expected a logged name, such as eval/return_mean"),
    ("--stop.metric=eval/return_mean --eval.every=0", "needs evaluations; expected eval.every above 0"),
    ("line --env.kwargs.loss=MSELos", "loss 'MSELos' is unknown; did you mean 'MSELoss'?"),
    ("cartpole_dqn line", "expected one CONFIG, got 2: cartpole_dqn line"),
    ("cartpol_dqn", "recipe 'cartpol_dqn' is neither a file nor a shipped recipe; did you mean 'cartpole_dqn'?"),
    ("--resume", "run 'latest': there is no run under runs/"),
    ("--resume --out nope", "run 'nope': there is no such folder"),
    ("--resume --out .", "run '.': is not a run's folder (it has no config.yaml)"),
    ("--init nope", "run 'nope': there is no such folder"),
    ("--plugin no_such_plugin", "--plugin no_such_plugin: cannot be imported (ModuleNotFoundError: No module named"),
]


@pytest.mark.parametrize(("words", "expected"), BAD_SETTINGS, ids=[words for words, _ in BAD_SETTINGS])
def test_bad_settings(command: Command, words: str, expected: str) -> None:
    argv = [word.replace("\0", " ") for word in words.replace("\\ ", "\0").split()]
    assert expected in sentence(command("train", *argv))
    assert list(Path().iterdir()) == [], "a run that cannot start leaves nothing behind"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there(command: Command) -> None:
    assert "device: got 'cuda', expected cpu: torch sees no such device here" in sentence(
        command("train", "--device=cuda")
    )


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("evaluate", "", "the following arguments are required: RUN"),
        ("evaluate", "nope", "run 'nope': there is no such folder; expected a run's folder, a glob, or latest"),
        ("evaluate", "latest", "run 'latest': there is no run under runs/"),
        ("evaluate", "RUN --episodes 0", "argument --episodes: got 0, expected a positive integer"),
        ("evaluate", "RUN --seed -3", "argument --seed: got '-3', expected a non-negative integer"),
        ("evaluate", "RUN --seed ten", "argument --seed: got 'ten', expected a non-negative integer"),
        ("evaluate", "RUN --episods 3", "argument '--episods' is not known; did you mean 'episodes'?"),
        ("evaluate", "RUN --checkpoint newest", "--checkpoint: got 'newest', expected last, best or a frame"),
        ("evaluate", "RUN --checkpoint 123", "has no checkpoint '123'; it has 400, 600, best"),
        ("predict", "RUN", "the following arguments are required: INPUT"),
        ("predict", "RUN x=1", "input 'x=1': expected an observation in JSON"),
        ("predict", "RUN [1,2,3]", "obs: got shape (3,), expected (4,) or a batch of these"),
        ("predict", 'RUN ["a"]', "expected an observation of Box"),
        ("predict", "TABLE sqft=1200", "there is no column 'beds'"),
        ("predict", "TABLE sqft=large beds=3", "column 'sqft': got 'large', expected a number"),
        ("predict", "TABLE sqft=1 sqft=2", "input 'sqft=2': expected every name once"),
        ("predict", "TABLE sqft=1 3", "input '3': expected a CSV file alone, or NAME=VALUE pairs of one row"),
        ("predict", "TABLE no.csv", "no.csv: got No such file or directory"),
        ("runs", "", "the following arguments are required: list|show"),
        ("runs", "list nope", "folder 'nope': is not there; expected a folder of runs"),
        ("runs", "list --jso", "argument '--jso' is not known; did you mean 'json'?"),
        ("runs", "show .", "run '.': is not a run's folder (it has no config.yaml)"),
    ],
)
def test_bad_words_for_the_other_scripts(
    command: Command, finished: Path, regression: Path, name: str, words: str, expected: str
) -> None:
    places = {"RUN": finished, "TABLE": regression}
    assert expected in sentence(command(name, *(places.get(word, word) for word in words.split())))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected a mapping of settings, got NoneType"),
        (b"- 1\n", "expected a mapping of settings, got list"),
        (b"optim:\n  lr: [1\nseed: 2\n", "bad.yaml line 3: expected YAML"),
        (b"seed: 1 # \xe9\xff\n", "expected a readable YAML file"),
        (b"env: &a {kwargs: *a}\n", "expected YAML of plain values, Circular reference"),
        (b"[1, 2]: 3\n", "expected YAML, found unhashable key"),
        (b"seed: !!python/object/apply:os.system [echo]\n", "could not determine a constructor"),
        (b"1: 2\n", "1 is not a setting"),
        (b"optim: 3\n", "optim: got 3, expected a valid dictionary"),
        (b"agent: [dqn]\n", "agent: ['dqn'] is not a mapping"),
    ],
)
def test_unreadable_recipes(command: Command, content: bytes, expected: str) -> None:
    Path("bad.yaml").write_bytes(content)
    assert expected in sentence(command("train", "bad.yaml"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "the file is empty, expected a header line and rows"),
        ("price,sqft\n1,2,3\n", "line 2: got 3 cells, expected 2 as in the header"),
        ("cost,sqft,beds\n" + "1,2,3\n" * 20, "there is no column 'price'"),
    ],
)
def test_unusable_tables(command: Command, content: str, expected: str) -> None:
    Path("mine.csv").write_text(content)
    assert expected in sentence(command("train", "house_prices", "--env.kwargs.path=mine.csv"))


def test_a_plugin_that_fails(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("raises_two_lines.py").write_text("raise RuntimeError('first\\nsecond')")
    Path("takes_a_name.py").write_text("import rlcore\nrlcore.register('agents', 'dqn', int)")
    expected = "--plugin raises_two_lines: cannot be imported (RuntimeError: first second)"
    assert sentence(command("train", "--plugin", "raises_two_lines")) == expected
    assert "--plugin takes_a_name: agents: 'dqn' is already registered" in sentence(
        command("train", "--plugin", "takes_a_name")
    )


def test_a_package_that_is_missing(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    assert "needs ale_py: pip install 'rlcore[atari]'" in sentence(command("train", "--env.id=ALE/Pong-v5"))
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    told = sentence(command("train", "--env.id=LunarLander-v3"))
    assert "environment 'LunarLander-v3'" in told
    assert "box2d" in told.lower()
    monkeypatch.setattr(registry, "_own", {("agents", "far"): "no_such_package:Agent", **registry._own})
    assert "agent 'far' cannot be imported from no_such_package:Agent" in sentence(command("train", "--agent.name=far"))


# Folders


def test_out_is_never_overwritten(command: Command, finished: Path) -> None:
    Path("file").write_text("x")
    Path("full").mkdir()
    Path("full/mine").write_text("x")
    shutil.copytree(finished, "run")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for out, words, expected in (
        ("file", [], "--out file: is a file; expected a folder"),
        ("file/x", [], "cannot write to 'file/x': Not a directory"),
        ("full", [], "--out full: is not empty and holds no run; expected a new or empty folder"),
        ("run", ["run"], "--out run: holds this very run; add --resume to continue it, or give another folder"),
        ("run", ["line"], "--out run: holds another run's configuration; expected a new or empty folder"),
    ):
        assert expected in sentence(command("train", *words, "--out", out))
    assert before == {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("--optim.lr=0.5", "optim.lr: got 0.5, but run was trained with 0.0"),
        ("--seed=4", "seed: got 4, but run was trained with 0"),
        ("--env.kwargs.gravity=3", "env.kwargs.gravity: got 3, but run was trained with nothing"),
        ("--budget.horizon=50", "budget.horizon: got 50, but run was trained with nothing"),
        ("--init=other", "init: got 'other', but run was trained with nothing"),
        ("--budget.frames=300", "budget.frames: got 300, but run has come to frame 600 already"),
        ("line", "but run was trained with"),
    ],
)
def test_a_resume_may_not_change_what_training_depends_on(
    command: Command, finished: Path, change: str, expected: str
) -> None:
    shutil.copytree(finished, "run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert expected in sentence(command("train", "--resume", "--out", "run", change))
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}


def test_weights_of_other_shapes_are_refused(command: Command, finished: Path) -> None:
    words = ["--init", finished, *options({**SMALL, "agent.network.kwargs.hidden": [8]})]
    told = sentence(command("train", *words))
    assert told == f"{finished} does not fit this agent: online.advantage.weight is (2, 16), expected (2, 8)"
    assert "absent" in sentence(command("train", "--init", finished, *options({**SMALL, "agent.dueling": True})))
    assert list(Path().iterdir()) == []


def test_a_glob_of_several_runs_is_no_run(command: Command, finished: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(finished, name)
    assert sentence(command("predict", "[ab]", "[0,0,0,0]")) == "run '[ab]': names 2 runs, expected one"


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(command: Command, finished: Path) -> None:
    shutil.copytree(finished, "run")
    newest = Path("run/checkpoints/000000000600/agent.safetensors")
    newest.write_bytes(newest.read_bytes()[:-7])
    done = command("evaluate", "run", "--json")
    assert done.code == 0
    assert done.err.startswith("note: checkpoint 'run/checkpoints/000000000600' is damaged: agent.safetensors is trunc")
    assert done.out == command("evaluate", finished, "--checkpoint", "400", "--json").out
    assert "is damaged" in sentence(command("evaluate", "run", "--checkpoint", "600"))
    resumed = command("train", "--resume", "--out", "run", "--quiet")
    assert (resumed.code, resumed.err.count("\n")) == (0, 1)
    assert command("evaluate", "run", "--json").out == command("evaluate", finished, "--json").out


def test_going_on_from_before_a_damaged_checkpoint_always_leaves_a_good_one(command: Command, finished: Path) -> None:
    shutil.copytree(finished, "run")
    newest = Path("run/checkpoints/000000000600")
    newest.rename(newest.with_name("000000000700"))
    newest.with_name("000000000700").joinpath("agent.safetensors").write_bytes(b"")
    assert command("train", "--resume", "--out", "run", "--quiet", "--checkpoint.keep", "1").code == 0
    assert [path.name for path in sorted(newest.parent.glob("0*"))] == ["000000000600"]
    assert command("evaluate", "run", "--json").out == command("evaluate", finished, "--json").out


def test_a_kill_while_the_best_checkpoint_is_replaced_leaves_the_one_before(command: Command, finished: Path) -> None:
    shutil.copytree(finished, "run")
    best = Path("run/checkpoints/best")
    best.rename(best.with_name(".old-best"))
    best = command("evaluate", "run", "--checkpoint", "best", "--json")
    assert (best.code, best.out) == (0, command("evaluate", finished, "--checkpoint", "best", "--json").out)


# Disk

ON_TMPFS = "needs root and tmpfs"


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A disk of three megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip(ON_TMPFS)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_too_small_a_disk_is_told_before_the_run_starts(command: Command, small_disk: Path) -> None:
    told = sentence(command("train", "--out", small_disk / "run"))
    assert told.startswith(f"the disk of '{small_disk / 'run'}' has 3 MB free and the run needs about ")
    assert list(small_disk.iterdir()) == []


class Broken(gym.Env[np.ndarray, int]):
    """Shows something that is not finite at one step of its life."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, what: str = "", at: int = 0) -> None:
        self.what, self.at, self.count = what, at, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.count += 1
        now = self.what if self.count == self.at else ""
        obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        obs[1] = np.nan if now == "observation" else obs[1]
        return obs, np.inf if now == "reward" else 1.0, self.count % 10 == 0, False, {}


gym.register("rlcore-tests/Broken-v0", entry_point=Broken)


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            return


def _at_step(monkeypatch: pytest.MonkeyPatch, number: int, happen: Callable[[], None]) -> None:
    """Let something happen in the training environments' step of that number."""
    build = api.build.trainer

    def built(*given: Any) -> Trainer:
        trainer, steps = build(*given), itertools.count(1)
        step = trainer.source.env.step

        def counted(action: torch.Tensor) -> Any:
            if next(steps) == number:
                happen()
            return step(action)

        trainer.source.env.step = counted
        return trainer

    monkeypatch.setattr(api.build, "trainer", built)


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(
    command: Command, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_disk / "run"
    with monkeypatch.context() as planned:
        _at_step(planned, 125, lambda: _fill(small_disk))
        told = sentence(command("train", "--out", run, "--quiet", *options(SMALL)))
    good = run / "checkpoints" / "000000000400"
    assert told.startswith(f"cannot write to '{run}")
    assert told.endswith(f"': No space left on device; the last good checkpoint is '{good}'")
    assert command("evaluate", run, "--episodes", "2").code == 0
    (small_disk / "filler").unlink()
    assert command("train", "--resume", "--out", run, "--quiet").code == 0
    assert runs.describe(run)["status"] == "finished"


def test_a_disk_that_is_read_only(command: Command, small_disk: Path, finished: Path) -> None:
    shutil.copytree(finished, small_disk / "run")
    (small_disk / "run" / "result.json").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for words in (["--out", small_disk / "new"], ["--resume", "--out", small_disk / "run"]):
        assert "Read-only file system; expected a writable folder" in sentence(
            command(
                "train",
                *words,
                *options({"budget.frames": 600, "source.capacity": 1000} if "new" in str(words) else {}),
            )
        )
    assert command("evaluate", small_disk / "run").code == 0


# NaN


@pytest.mark.parametrize(("what", "became"), [("observation", "NaN"), ("reward", "infinite")])
def test_nan_from_the_environment_stops_the_run(command: Command, what: str, became: str) -> None:
    broken = {"env.id": "rlcore-tests/Broken-v0", "env.kwargs.what": what, "env.kwargs.at": 330, "env.num_envs": 1}
    small = {**SMALL, **broken, "checkpoint.every": 100, "log.every": 50}
    told = sentence(command("train", "--out", "run", "--quiet", *options(small)))
    assert told == f"'{what}' became {became} at frame 330; last good checkpoint: run/checkpoints/000000000300"
    _finite(Path("run"), 300)
    about = runs.about(Path("run"))
    assert about["status"] == "failed"
    assert about["result"]["error"] == f"'{what}' became {became} at frame 330"
    assert command("evaluate", "run", "--episodes", "2").code == 0


def test_a_goal_that_is_not_logged_is_told_with_the_nearest_name(command: Command) -> None:
    words = ["--quiet", *options({**SMALL, "log.every": 4, "budget.frames": 200})]
    told = sentence(command("train", *words, "--stop.metric=train/episode_retrun"))
    assert told == "stop.metric: 'train/episode_retrun' is not logged; did you mean 'train/episode_return'?"
    for name in ("train/episode_return", "train/episode_length"):  # most intervals see no episode end
        assert command("train", *words, f"--stop.metric={name}", "--stop.threshold=1000").code == 0


def test_a_loss_that_explodes_stops_the_run(command: Command) -> None:
    told = sentence(command("train", "line", "--out", "run", "--quiet", "--optim.lr=1e12", "--checkpoint.every=32"))
    assert told.startswith("'loss' became infinite at update 3; last good checkpoint: run/checkpoints/")
    _finite(Path("run"), 64)


def test_weights_that_overflow_are_never_saved(command: Command) -> None:
    words = ["--optim.lr=1e39", "--optim.momentum=0", "--checkpoint.every=1", "--log.every=100000", "--eval.every=1"]
    told = sentence(command("train", "line", "--out", "run", "--quiet", *words))
    assert told == "weights 'network.head.weight' became NaN or infinite by update 1; last good checkpoint: none"
    assert not list(Path("run/checkpoints").glob("*"))


def _finite(run: Path, frames: int) -> None:
    saved = checkpoint.load(run / "checkpoints")
    assert saved.frames == frames
    for path in (run / "checkpoints").iterdir():
        for tensor in checkpoint.load(path).agent.values():
            assert bool(torch.isfinite(tensor).all())


def test_a_bug_of_ones_own_shows_its_traceback(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    _at_step(monkeypatch, 100, lambda: int("no number"))
    with pytest.raises(ValueError, match="no number"):
        cli.train(["--out", "run", "--quiet", *options(SMALL)])
    about = runs.describe(Path("run"))
    assert (about["status"], about["frames"]) == ("failed", 396)
    assert "no number" in about["problem"]


def test_memory_that_runs_out_in_training(command: Command) -> None:
    told = sentence(command("train", "--out", "run", "--quiet", *options({**SMALL, "source.batch_size": 10**13})))
    assert told.startswith("memory: a tensor of ")
    assert runs.describe(Path("run"))["status"] == "failed"


# Installation


def test_a_shadowed_package_is_told_on_import(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").touch()
    code = "try:\n import rlcore\nexcept ImportError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.startswith(f"package 'agents' is {tmp_path / 'agents'}, not rlcore's own in {ROOT}: another ")
    assert done.stdout.count("\n") == 1


def test_a_folder_named_agents_where_one_works_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    for name in ("__init__.py", "configs.py"):
        (tmp_path / "agents" / name).touch()
    (tmp_path / "mine_beside_agents.py").touch()
    script = str(ROOT / "scripts" / "train.py")
    command = [sys.executable, script, "--plugin", "mine_beside_agents", "--agent.lss=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "agent.lss is not a setting; did you mean 'loss'?" in done.stderr


def test_python_callers_get_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optim\.lrr is not a setting"):
        api.train("line", out=tmp_path / "run", optim={"lrr": 1})
    with pytest.raises(UserError, match="there is no such folder"):
        rlcore.load(tmp_path / "none")
    with pytest.raises(UserError, match="there is no such folder"):
        rlcore.evaluate([tmp_path / "none"])
