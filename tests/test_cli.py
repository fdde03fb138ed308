"""The scripts as a stranger uses them."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import SMALL, Command, options, rows, scalars

import rlcore
from rlcore import config as configs
from rlcore import registry, runs

SCRIPTS = configs.recipes().parent
KEYS = ["episodes", "seed", "mean", "std", "iqm", "ci_low", "ci_high", "min", "max"]
REQUIRED = ["episode_return", "episode_length", "loss", "q_value", "target_q", "epsilon", "learning_rate", "grad_norm"]


def _script(name: str, *argv: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(SCRIPTS / name), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **more}, check=False)


# Help


def test_help_is_instant_and_imports_no_torch() -> None:
    code = (
        "import sys; from rlcore import cli, cli_runs\n"
        "for command in (cli.train, cli.evaluate, cli.predict, cli_runs.runs):\n"
        "    try: command(['--help'])\n"
        "    except SystemExit as left: assert not left.code\n"
        "heavy = {'torch', 'gymnasium', 'scipy', 'tensorboard', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 0.5, f"--help of four scripts takes {seconds:.2f} s of processor time"


def test_help_lists_every_field_with_its_meaning_and_its_own_default(command: Command) -> None:
    out = command("train", "--help").out
    sections = out.split("\n\n")

    def options(*texts: str) -> dict[str, str]:
        return {line.split()[0]: line for text in texts for line in text.splitlines() if line.startswith("  --")}

    common = [text for text in sections if not text.startswith("agent (")]
    for agent in registry.names("agents"):
        own = [text for text in sections if text.startswith(f"agent (with --agent.name={agent})")]
        lines = options(*common, *own)
        for source in configs.agent_config(agent).learns_from:
            config = configs.validate({"agent": {"name": agent}, "source": {"name": source}})
            for dotted, default in configs.flatten(config.model_dump()).items():
                kwargs = ".kwargs." in dotted  # keywords are described as one
                name = dotted.split(".kwargs.")[0] + ".kwargs" if kwargs else dotted
                assert f"--{name}" in lines, f"{name} is not in the help"
                text = lines[f"--{name}"].removeprefix(f"  --{name}").strip()
                assert len(text.split("[")[0].strip()) > 5, f"{name} has no meaning in the help"
                if isinstance(default, (int, float)) and not kwargs and name.split(".")[0] not in ("source",):
                    assert text.endswith(f"[{json.dumps(default)}]"), f"{name}: {text}"
    for option in ("--out", "--resume", "--init", "--plugin", "--quiet", "--seed"):
        assert option in out
    for name in ("cartpole_dqn", "house_prices", "mlp", "tabular"):
        assert name in out.split("\nrecipes: ")[1]
    lines = options(*[text for text in sections if "--agent.name=dqn)" in text])
    assert "linear 1 to 0.05" in lines["--agent.epsilon"]
    assert lines["--agent.epsilon.kind"].endswith("(one of constant, linear, cosine, exponential) [linear]")
    assert not [line for line in out.splitlines() if line.rstrip().endswith(("--agent", "--source"))]


@pytest.mark.parametrize("name", ["evaluate", "predict", "runs"])
def test_other_helps_end_well(command: Command, name: str) -> None:
    assert "usage:" in command(name, "--help").out


# Training


def test_train_makes_a_complete_run(finished: Path) -> None:
    held = {path.name.split(".0000")[0] for path in finished.iterdir() if not path.name.startswith(".")}
    expected = {"config.yaml", "manifest.json", "progress.csv", "events.out.tfevents", "checkpoints", "result.json"}
    assert held == expected
    result = json.loads((finished / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["frames"] == 600
    assert result["updates"] == 100  # (600 - 100) / 5
    assert result["train_seconds"] > 0
    assert list(result["evaluation"]) == [*KEYS, "returns"]
    manifest = json.loads((finished / "manifest.json").read_text())
    assert {"torch", "gymnasium", "numpy", "rlcore"} <= set(manifest["packages"])
    assert manifest["git"] is None or len(manifest["git"]) >= 40
    assert manifest["command"]
    assert manifest["machine"]["cpus"] == os.cpu_count()
    logged = scalars(finished)
    assert {f"train/{name}" for name in REQUIRED} <= logged.keys()
    assert {f"eval/return_{name}" for name in ("mean", "iqm", "ci_low", "ci_high")} <= logged.keys()
    header = (finished / "progress.csv").read_text().splitlines()[0]
    assert header.endswith("time/frames_per_second,time/train_seconds,time/updates_per_second")
    assert [step for step, _ in logged["train/learning_rate"]] == [100, 200, 300, 400, 500, 600]
    assert [step for step, _ in logged["eval/return_mean"]] == [200, 400, 600]


def test_a_fresh_run_is_printed_first_and_its_config_repeats_it(command: Command, tmp_path: Path) -> None:
    first = command("train", "cartpole_dqn", "--seed", "3", *options(SMALL))
    assert first.code == 0
    out = first.err.splitlines()[0].removeprefix("run: ")
    assert out.startswith("runs/cartpole_dqn-s3-")
    assert first.out.splitlines()[-1].endswith(f"run: {out}")
    saved = yaml.safe_load(Path(out, "config.yaml").read_text())
    whole = configs.flatten(configs.validate(saved).model_dump(mode="json"))
    assert configs.flatten(saved) == whole, "config.yaml leaves settings out"
    again = command("train", Path(out) / "config.yaml", "--out", "again", "--quiet")
    assert again == (0, "", "")
    assert rows(Path(out)) == rows(Path("again"))


@pytest.mark.parametrize(
    "words",
    [
        ["--seed", "7", "--stop.threshold", "-9.8", "cartpole_dqn", "--quiet", "--agent.double", "false"],
        ["--quiet", "--agent.double=false", "cartpole_dqn", "--stop.threshold=-9.8", "--seed=7"],
    ],
)
def test_settings_may_stand_anywhere_with_or_without_equals(command: Command, words: list[str]) -> None:
    small = {**SMALL, "budget.frames": 40}
    assert command("train", *words, "--out", "r", *options(small)).code == 0
    config = configs.validate(configs.read("r"))
    assert (config.seed, config.stop.threshold, config.agent.double) == (7, -9.8, False)


def test_config_may_be_a_run_or_left_out(command: Command, finished: Path) -> None:
    assert command("train", finished, "--out", "copy", "--quiet", "--budget.frames=40").code == 0
    assert configs.read("copy")["recipe"] == "cartpole_dqn"
    assert command("train", "--out", "default", "--quiet", *options({**SMALL, "budget.frames": 40})).code == 0
    assert configs.read("default")["recipe"] == "cartpole_dqn"


def test_a_plugin_in_one_file_brings_agent_environment_and_network(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_own", dict(registry._own))
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("mine_in_one_file.py").write_text(PLUGIN)
    mine = ["--plugin", "mine_in_one_file"]
    words = [*mine, "--agent.name=guess", "--env.id=Corridor", "--agent.network.name=tiny", "--quiet"]
    small = {"budget.frames": 200, "source.learning_starts": 50, "agent.bonus": 0.5, "env.num_envs": 2}
    small |= {"eval.every": 0, "stop.metric": ""}
    assert command("train", *words, *options(small), "--out", "r") == (0, "", "")
    assert json.loads(command("evaluate", "r", *mine, "--json").out)["mean"] == 3.0
    assert "--agent.bonus                 added to every value [1.0]" in command("train", *mine, "--help").out


PLUGIN = '''
from typing import Literal

import torch
from gymnasium import spaces
from pydantic import Field

import rlcore
from agents.networks import build_network
from agents.networks.encode import Network
from rlcore.agent import Agent
from rlcore.config import AgentConfig, NetworkConfig
from rlcore.native import BatchedEnv
from rlcore.types import Act, Loss


class GuessConfig(AgentConfig):
    """Values that know no future."""

    name: Literal["guess"] = Field(default="guess", description="a guess")
    network: NetworkConfig = NetworkConfig()
    bonus: float = Field(default=1.0, description="added to every value")


class Guess(Agent):
    Config = GuessConfig

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.features = build_network(config.network, spec.obs_space)
        self.head = torch.nn.Linear(self.features.out_features, int(spec.action_space.n))

    def values(self, obs):
        return self.head(self.features(obs)) + self.config.bonus

    def act(self, obs, state, knobs, noise, mask=None, explore=True):
        return Act(self.values(obs).argmax(-1), state)

    def loss(self, batch):
        t = batch.data
        error = self.values(t.obs).gather(1, t.action[:, None])[:, 0] - t.reward
        return Loss(error.square().sum(), len(error))


class Tiny(Network):
    def __init__(self, space):
        super().__init__()
        self.out_features = 1

    def forward(self, obs):
        return obs


class Corridor(BatchedEnv):
    """Three steps of reward 1, whatever is done."""

    num_uniforms = 1

    def __init__(self, num_envs, device="cpu", split="train", autoreset="same_step"):
        super().__init__(
            num_envs, device, split, autoreset,
            obs_space=spaces.Box(0, 3, (1,)), action_space=spaces.Discrete(2), max_episode_steps=3,
        )

    def initial(self, u):
        return torch.zeros_like(u)

    def dynamics(self, state, action):
        reward = torch.ones(len(state))
        return state + 1, reward, torch.zeros(len(state), dtype=torch.bool)

    def observe(self, state):
        return state.float()


rlcore.register("agents", "guess", Guess)
rlcore.register("envs", "Corridor", Corridor)
rlcore.register("networks", "tiny", Tiny)
'''


# Evaluation


def test_evaluate_prints_json_with_exactly_these_keys(command: Command, finished: Path, regression: Path) -> None:
    done = command("evaluate", finished, "--json")
    result = json.loads(done.out)
    assert list(result) == [*KEYS, "returns"]
    assert result == json.loads((finished / "result.json").read_text())["evaluation"]
    assert len(result["returns"]) == result["episodes"] == 5
    assert result["seed"] == 10_000
    assert list(json.loads(command("evaluate", regression, "--json").out)) == [
        *KEYS,
        "mse",
        "rmse",
        "mae",
        "r2",
        "returns",
    ]


def test_episode_i_starts_from_seed_plus_i(command: Command, finished: Path) -> None:
    many = json.loads(command("evaluate", finished, "--json", "--episodes", "6", "--seed", "100").out)
    last = json.loads(command("evaluate", finished, "--json", "--episodes", "2", "--seed", "104").out)
    assert last["returns"] == many["returns"][4:]


def test_evaluate_takes_the_checkpoint_it_is_told(command: Command, finished: Path, tmp_path: Path) -> None:
    returns = {}
    for which in ("last", "best", "400", "600"):
        done = command("evaluate", finished, "--json", "--checkpoint", which, "--episodes", "30")
        returns[which] = json.loads(done.out)["returns"]
    assert returns["last"] == returns["600"]
    assert returns["400"] != returns["600"]
    frames = json.loads((finished / "checkpoints" / "best" / "manifest.json").read_text())["frames"]
    means = [float(row["eval/return_mean"] or "-inf") for row in rows(finished)]
    best = max(means)
    assert frames == max(int(row["frames"]) for row, mean in zip(rows(finished), means, strict=True) if mean == best)


def test_several_runs_and_globs_make_a_study(
    command: Command, finished: Path, regression: Path, tmp_path: Path
) -> None:
    for seed in (1, 2):
        assert command("train", finished, "--out", f"study/{seed}", "--quiet", f"--seed={seed}").code == 0
    done = command("evaluate", finished, "study/*", "study/1", "--json")
    result = json.loads(done.out)
    means = [run["mean"] for run in result["runs"]]
    assert result["returns"] == means
    assert [run["run"] for run in result["runs"]] == [str(finished), "study/1", "study/2"]
    assert result["mean"] == pytest.approx(sum(means) / 3)
    assert result["ci_low"] <= result["iqm"] <= result["ci_high"]
    assert "3 runs" in command("evaluate", finished, "study/*").out
    assert "expected runs of one environment" in command("evaluate", finished, regression).err


@pytest.mark.parametrize("setting", ["env.kwargs.max_episode_steps=50", "eval.final_episodes=3", "eval.final_seed=7"])
def test_runs_that_are_not_evaluated_alike_are_not_pooled(command: Command, finished: Path, setting: str) -> None:
    words = [finished, "--out", "other", "--quiet", "--budget.frames=40", f"--{setting}"]
    assert command("train", *words).code == 0
    name = setting.split("=")[0].replace(".max_episode_steps", "")
    refused = command("evaluate", finished, "other")
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert f"{name}: {finished} has " in refused.err
    if name != "env.kwargs":
        assert command("evaluate", finished, "other", "--episodes=2", "--seed=3").code == 0


def test_latest_is_the_run_that_began_last(command: Command, finished: Path) -> None:
    for name in ("b", "a"):
        assert command("train", finished, "--out", f"runs/{name}", "--quiet", "--budget.frames=40").code == 0
    assert "run: runs/a" in command("runs", "show", "latest").out
    assert json.loads(command("evaluate", "latest", "--json").out)["episodes"] == 5


# Prediction


def test_predict_prints_greedy_actions(command: Command, finished: Path) -> None:
    leaning = ["[0, 0, 0.2, 2]", "[0, 0, -0.2, -2]"]
    one_by_one = [command("predict", finished, obs).out for obs in leaning]
    assert command("predict", finished, *leaning).out == "".join(one_by_one)
    assert set("".join(one_by_one).split()) <= {"0", "1"}
    assert json.loads(command("predict", finished, *leaning, "--json").out) == [int(text) for text in one_by_one]


def test_predict_reads_rows_and_tables(command: Command, regression: Path) -> None:
    Path("new.csv").write_text("beds,sqft,other\n3,1200,x\n2,836,y\n")
    [one] = json.loads(command("predict", regression, "sqft=1200", "beds=3", "--json").out)
    two = json.loads(command("predict", regression, "new.csv", "--json").out)
    assert two[0] == pytest.approx(one)
    assert all(100_000 < price < 400_000 for price in two)
    assert two[0] != two[1]


def test_predict_reads_texts_and_files_of_texts(command: Command, tmp_path: Path) -> None:
    rows = [("good fine good", "yes"), ("bad poor bad", "no")]
    lines = [f"{text} {i},{label}" for i in range(30) for text, label in rows]
    Path("said.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    settings = {
        "env": {"id": "text_classification", "kwargs": {"data": "said.csv", "tokens": "words", "length": 8}},
        "agent": {
            "name": "supervised",
            "network": {"name": "encoder", "kwargs": {"layers": 1, "heads": 2, "width": 16}},
        },
        "source": {"batch_size": 8},
        "optim": {"lr": 1e-2},
        "budget": {"frames": 800},
        "eval": {"every": 0},
    }
    run = rlcore.train(settings, out=tmp_path / "run").path
    assert json.loads(command("predict", run, "good good fine", "poor bad", "--json").out) == ["yes", "no"]
    Path("new.csv").write_text("text\nbad bad\nfine\n")
    assert json.loads(command("predict", run, "new.csv", "--json").out) == ["no", "yes"]


# Runs


def test_list_names_every_folder_quickly_and_never_fails(command: Command, finished: Path) -> None:
    for number in range(500):
        run = Path("many", f"{number:03d}")
        (run / "checkpoints" / f"{number:012d}").mkdir(parents=True)
        for name in ("config.yaml", "manifest.json", "result.json"):
            shutil.copy(finished / name, run)
    Path("many/000/config.yaml").write_text("seed: [")
    Path("many/001/config.yaml").unlink()
    Path("many/002/result.json").write_text('{"status": "fin')
    Path("many/003/result.json").unlink()
    Path("many/004/result.json").write_text('{"status": "failed", "error": "because", "evaluation": 3}')
    Path("many/005/manifest.json").unlink()
    start = time.process_time()
    done = command("runs", "list", "many", "--json")
    seconds = time.process_time() - start
    listed = {Path(row["run"]).name: row for row in json.loads(done.out)}
    assert len(listed) == 500
    assert [listed[f"00{i}"]["status"] for i in range(6)] == [*["broken"] * 3, "unfinished", "failed", "finished"]
    assert "expected YAML" in listed["000"]["problem"]
    assert listed["003"]["frames"] == 3
    evaluation = json.loads((finished / "result.json").read_text())["evaluation"]
    assert (listed["499"]["mean"], listed["499"]["frames"], listed["499"]["seed"]) == (evaluation["mean"], 600, 0)
    assert seconds < 2, f"listing 500 runs takes {seconds:.1f} s"
    table = command("runs", "list", "many").out.splitlines()
    assert len(table) == 501
    assert "because" in table[5]


def test_list_tells_a_running_run(command: Command, finished: Path) -> None:
    shutil.copytree(finished, "runs/copy", ignore=shutil.ignore_patterns("result.json"))
    assert " unfinished " in command("runs", "list").out
    with runs.locked(Path("runs/copy")):
        assert " running " in command("runs", "list").out
        done = command("train", "--resume", "--quiet")
        assert done.code == 2
        assert "is being trained by another process" in done.err
    assert " unfinished " in command("runs", "list").out


def test_show_tells_all_about_a_run(command: Command, finished: Path) -> None:
    shown = yaml.safe_load(command("runs", "show", finished).out)
    assert shown == json.loads(command("runs", "show", finished, "--json").out)
    assert shown["status"] == "finished"
    assert shown["config"] == configs.read(finished)
    assert shown["checkpoints"] == ["000000000400", "000000000600", "best"]
    assert shown["result"]["evaluation"]["mean"] == shown["mean"]
    assert "returns" not in shown["result"]["evaluation"]


def test_a_reader_that_leaves_early_is_no_error(finished: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "runs.py"), "show", str(finished)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_the_scripts_themselves_run(finished: Path, tmp_path: Path) -> None:
    assert json.loads(_script("evaluate.py", finished, "--json", "--episodes", "2").stdout)["episodes"] == 2
    assert "finished" in _script("runs.py", "list", finished.parent).stdout
    done = _script("train.py", "nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: recipe 'nope' is neither a file nor a shipped recipe")
