"""Exported agents: the same answers as the agent from a file loaded anew, for every family and format."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from gymnasium import spaces
from torch import Tensor, nn

import rlcore
from rlcore import build
from rlcore import config as configs
from rlcore.errors import UserError
from rlcore.export import Candidate, export, formats, load_export, quantize
from rlcore.export.check import ArtefactAgent, Difference, answers, compare, observations
from rlcore.export.exported import Greedy, Signature
from rlcore.export.formats import NEEDS, SUFFIXES
from rlcore.export.metadata import space_json
from rlcore.normalize import Normalizer
from rlcore.run import Run

ONNX = pytest.mark.skipif(
    any(find_spec(name) is None for name in NEEDS),
    reason="the extra 'export' is not installed",
)


def net(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"network": {"name": name, "kwargs": kwargs}}


MLP = {"name": "mlp", "kwargs": {"hidden": [8]}}
TOKENS = {"network": {"name": "decoder", "kwargs": {"layers": 1, "heads": 2, "width": 8}}}
TEXTS = {"name": "encoder_decoder", "kwargs": {"layers": 1, "heads": 2, "width": 8}}
CARTPOLE, PENDULUM, MEMORY = ({"id": name} for name in ("CartPole-v1", "Pendulum-v1", "CartPolePositions-v1"))
# A configuration of every family: (agent, environment).
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dqn": ({"name": "dqn", "network": MLP, "normalize_obs": True}, CARTPOLE),
    "dqn-dueling-noisy": ({"name": "dqn", "network": MLP, "dueling": True, "noisy": True}, CARTPOLE),
    "dqn-masks": ({"name": "dqn", "network": MLP}, {"id": "Taxi-v4"}),
    "dqn-tuple": ({"name": "dqn", "network": MLP}, {"id": "Blackjack-v1"}),
    "dqn-dict": ({"name": "dqn", "network": {"name": "dict"}}, {"id": "BitFlip"}),
    "dqn-image": ({"name": "dqn", **net("minatar_cnn", features=8)}, {"id": "PixelBreakout-v0"}),
    "c51": ({"name": "c51", "network": MLP}, CARTPOLE),
    "qr_dqn": ({"name": "qr_dqn", "network": MLP}, CARTPOLE),
    "iqn": ({"name": "iqn", "network": MLP}, CARTPOLE),
    "rainbow": ({"name": "rainbow", "network": MLP}, CARTPOLE),
    "pqn": ({"name": "pqn", "network": MLP, "normalize_obs": True}, CARTPOLE),
    "r2d2": ({"name": "r2d2", **net("lstm", features=8), "last_action": True}, CARTPOLE),
    "r2d2-history": ({"name": "r2d2", **net("history", features=8, context=3)}, CARTPOLE),
    "ppo": ({"name": "ppo", "network": MLP, "normalize_obs": True}, PENDULUM),
    "ppo-memory": ({"name": "ppo", **net("gru", features=8), "shared": False}, MEMORY),
    "a2c": ({"name": "a2c", "network": MLP}, CARTPOLE),
    "reinforce": ({"name": "reinforce", "network": MLP}, CARTPOLE),
    "sac": ({"name": "sac", "network": MLP, "hidden": [8], "normalize_obs": True}, PENDULUM),
    "td3": ({"name": "td3", "network": MLP, "hidden": [8]}, PENDULUM),
    "ddpg": ({"name": "ddpg", "network": MLP, "hidden": [8]}, PENDULUM),
    "bc": ({"name": "bc", "network": MLP, "hidden": [8]}, CARTPOLE),
    "bc-box": ({"name": "bc", "network": MLP, "hidden": [8]}, PENDULUM),
    "cql": ({"name": "cql", "network": MLP, "hidden": [8]}, CARTPOLE),
    "cql-box": ({"name": "cql", "network": MLP, "hidden": [8]}, PENDULUM),
    "iql": ({"name": "iql", "network": MLP, "hidden": [8]}, CARTPOLE),
    "supervised": ({"name": "supervised", "network": MLP}, {"id": "line"}),
    "supervised-cnn": ({"name": "supervised", **net("small_cnn", width=4, features=8)}, {"id": "images"}),
    "supervised-vit": ({"name": "supervised", **net("vit", patch=4, layers=1, heads=2, width=8)}, {"id": "images"}),
    "seq2seq": ({"name": "seq2seq", "network": TEXTS}, {"id": "pairs", "kwargs": {"kind": "reversal"}}),
    "grpo": ({"name": "grpo", **TOKENS}, {"id": "prompts", "kwargs": {"kind": "sorting", "n": 200, "group": 2}}),
    "language": ({"name": "supervised", **TOKENS}, {"id": "language_model", "kwargs": {"context": 8}}),
}  # fmt: skip


def made(name: str, tmp_path: Path) -> tuple[Run, list[list[Tensor]]]:
    """Return an untrained agent of a family whose normalisers have learnt, and real inputs."""
    agent_config, env_config = FAMILIES[name]
    config = configs.validate({"agent": agent_config, "env": {"num_envs": 4, **env_config}}, name)
    env = build.env(config.env)
    torch.manual_seed(0)
    agent = build.agent(config, env.spec)
    for module in agent.modules():
        if isinstance(module, Normalizer) and module.moments is not None:
            module.observe(3 + 2 * torch.randn(50, *module.shift.shape))
    (tmp_path / "run").mkdir()
    if fitted := env.fitted():
        (tmp_path / "run" / "fitted.json").write_text(json.dumps(fitted))
    run = Run(tmp_path / "run", config, agent, env.spec)
    return run, observations(run, 24)


LONG = {"seq2seq", "grpo"}  # whole completions in one graph, whose tracing takes most of a minute


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in sorted(FAMILIES)]
)
def test_every_family_in_a_graph_of_any_batch(name: str, tmp_path: Path) -> None:
    run, inputs = made(name, tmp_path)
    found = Candidate(run, run.agent, "pt2", tmp_path / "model.pt2", inputs)  # raises where they differ
    assert found.difference.observations == sum(len(rows[0]) for rows in inputs) >= 16
    assert found.difference.equal_actions in (None, 1.0)
    kept = {x.data_ptr() for x in found.greedy.agent.parameters()}
    assert len(kept) < len(list(run.agent.parameters())) or name in EVERYTHING_ACTS


# Agents without targets or critics, or whose probabilities come with values: all of their weights act.
EVERYTHING_ACTS = {
    "a2c", "ppo-memory", "bc", "bc-box", "grpo", "language", "pqn", "reinforce", "seq2seq", "supervised",
    "supervised-cnn", "supervised-vit",
}  # fmt: skip


@pytest.mark.parametrize("name", ["dqn-dueling-noisy", "dqn-masks", "dqn-image", "ppo", "ppo-memory", "r2d2-history"])
@pytest.mark.parametrize("format", ["torchscript", "safetensors"])
def test_other_formats_of_torch(name: str, format: str, tmp_path: Path) -> None:
    run, inputs = made(name, tmp_path)
    Candidate(run, run.agent, format, tmp_path / f"model{SUFFIXES[format]}", inputs)


@ONNX
@pytest.mark.parametrize("name", ["dqn", "ppo", "r2d2"])
def test_onnx(name: str, tmp_path: Path) -> None:
    run, inputs = made(name, tmp_path)
    found = Candidate(run, run.agent, "onnx", tmp_path / "model.onnx", inputs)
    assert b"/agents/" not in found.path.read_bytes(), "paths of the machine that wrote it"


@pytest.mark.parametrize("name", ["dqn", "ppo", "sac", "language"])
def test_bf16_weights_widen_to_what_they_hold(name: str, tmp_path: Path) -> None:
    run, inputs = made(name, tmp_path)
    found = Candidate(run, run.agent, "pt2", tmp_path / "model.pt2", inputs, half=True)
    assert {x.dtype for x in found.greedy.parameters()} == {torch.bfloat16}
    names = found.greedy.signature
    whole = compare(names, run.spec, inputs, answers(run.agent, run.spec, names, inputs), found.artefact)
    assert whole.largest > 1e-5, "nothing was rounded"


def _plant(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let what is written, and nothing else, go through ``change`` of (Greedy, outputs)."""
    forward = Greedy.forward
    monkeypatch.setattr(Greedy, "forward", lambda self, *inputs: tuple(change(self, list(forward(self, *inputs)))))


def _shifted(greedy: Greedy, outputs: list[Tensor]) -> list[Tensor]:
    return [outputs[0], outputs[1] + 1e-3, *outputs[2:]]


def _swapped(greedy: Greedy, outputs: list[Tensor]) -> list[Tensor]:
    return [*outputs[:-2], outputs[-1], outputs[-2]]


def _worst(greedy: Greedy, outputs: list[Tensor]) -> list[Tensor]:
    return [outputs[1].argmin(-1), *outputs[1:]]


def _crossed(self: Greedy, *inputs: Tensor) -> Any:
    """Take a memory for the other."""
    return FORWARD(self, *inputs[:-2], inputs[-1], inputs[-2])


FORWARD = Greedy.forward


def test_memories_taken_for_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, inputs = made("ppo-memory", tmp_path)
    monkeypatch.setattr(Greedy, "forward", _crossed)
    with pytest.raises(UserError, match=r"differs from the agent by .* nothing was written"):
        Candidate(run, run.agent, "pt2", tmp_path / "model.pt2", inputs)


@ONNX
def test_inputs_called_by_each_others_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, inputs = made("ppo-memory", tmp_path)
    crossed = property(lambda names: [*names.obs, *names.mask, *names.state[::-1]])
    written = formats.write

    def write(*args: Any) -> None:
        with monkeypatch.context() as planted:
            planted.setattr(Signature, "inputs", crossed)
            written(*args)

    monkeypatch.setattr("rlcore.export.write", write)
    with pytest.raises(UserError, match=r"differs from the agent by .* nothing was written"):
        Candidate(run, run.agent, "onnx", tmp_path / "model.onnx", inputs)


@pytest.mark.parametrize(
    ("name", "change"), [("dqn", _shifted), ("dqn", _worst), ("ppo-memory", _swapped), ("r2d2", _shifted)]
)
def test_what_differs_from_the_agent_is_refused(
    name: str, change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, inputs = made(name, tmp_path)
    _plant(monkeypatch, change)
    with pytest.raises(UserError, match=r"differs from the agent by .* nothing was written"):
        Candidate(run, run.agent, "pt2", tmp_path / "model.pt2", inputs)


def test_a_normaliser_left_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, inputs = made("ppo", tmp_path)
    init = Greedy.__init__

    def without(self: Greedy, *args: Any) -> None:
        init(self, *args)
        self.agent.obs = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]

    monkeypatch.setattr(Greedy, "__init__", without)
    with pytest.raises(UserError, match="differs from the agent"):
        Candidate(run, run.agent, "pt2", tmp_path / "model.pt2", inputs)


def test_actions_are_clipped_to_the_box(tmp_path: Path) -> None:
    run, inputs = made("ppo", tmp_path)
    with torch.no_grad():
        run.agent.head.mean.weight.mul_(1e4)  # pyright: ignore
    found = Candidate(run, run.agent, "pt2", tmp_path / "model.pt2", inputs)
    actions = torch.cat([found.artefact(rows)[0] for rows in inputs])
    assert actions.abs().max() == 2.0 and (actions.abs() == 2.0).float().mean() > 0.5


def test_discrete_actions_count_from_the_start_of_their_space(tmp_path: Path) -> None:
    run, inputs = made("dqn", tmp_path)
    run.spec = run.spec._replace(action_start=5)
    found = Candidate(run, run.agent, "pt2", tmp_path / "model.pt2", inputs)
    actions = torch.cat([found.artefact(rows)[0] for rows in inputs])
    assert set(actions.tolist()) <= {5, 6}


def test_a_file_that_plays_counts_its_actions_from_zero(tmp_path: Path) -> None:
    run, _ = made("dqn", tmp_path)
    spec = run.spec._replace(action_start=np.array([5, 1]))  # as of a MultiDiscrete
    names = Greedy(run.agent, run.spec).signature
    player = ArtefactAgent(run.config.agent, spec, names, [], lambda given: [torch.tensor([[5, 3], [6, 1]])])
    assert player.act(torch.zeros(2, 4), (), {}, {}).action.tolist() == [[0, 2], [1, 0]]


def test_a_split_that_is_too_small_is_filled_up_from_the_next(tmp_path: Path) -> None:
    run, _ = made("grpo", tmp_path)  # whose prompts come in groups in training
    sizes = [build.env(run.config.env, split=split).task.size for split in ("test", "validation", "train")]
    found = observations(run, sum(sizes[:2]) + 3)
    assert sum(len(rows[0]) for rows in found) == sum(sizes[:2]) + 3
    last = build.env(run.config.env, split="train").task.draw(torch.arange(3)).obs
    assert torch.equal(found[-1][0], last)


def test_masked_actions_are_not_chosen(tmp_path: Path) -> None:
    run, inputs = made("dqn-masks", tmp_path)
    found = Candidate(run, run.agent, "pt2", tmp_path / "model.pt2", inputs)
    obs, mask = inputs[0]
    for only in range(6):
        assert found.artefact([obs, torch.arange(6).expand(mask.shape) == only])[0].eq(only).all()


@pytest.mark.parametrize("gap", [0.0, 1e-6, 1e-3])
def test_only_ties_excuse_another_action(gap: float, tmp_path: Path) -> None:
    run, _ = made("dqn", tmp_path)
    names = Greedy(run.agent, run.spec).signature
    scores = torch.tensor([[1.0, 1.0 - gap]])
    agent, file = [torch.tensor([0]), scores], [torch.tensor([1]), scores]
    found = compare(names, run.spec, [[torch.zeros(1, 4)]], [agent], lambda given: file)
    assert found == Difference(1, 0.0, 0.0, int(gap > 1e-4))


def test_texts_may_be_shorter_than_the_context(tmp_path: Path) -> None:
    run, inputs = made("language", tmp_path)
    found = Candidate(run, run.agent, "pt2", tmp_path / "model.pt2", inputs)
    (tokens,) = inputs[0]
    whole, part = found.artefact([tokens])[0], found.artefact([tokens[:, :5]])[0]
    torch.testing.assert_close(part, whole[:, :5], rtol=0, atol=1e-5)


def test_an_agent_that_waits_for_a_value_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, inputs = made("dqn", tmp_path)
    act = type(run.agent).act

    def waits(self: Any, obs: Any, *rest: Any, **more: Any) -> Any:
        return act(self, obs * (2 if obs.sum() > 0 else 1), *rest, **more)

    monkeypatch.setattr(type(run.agent), "act", waits)
    with pytest.raises(UserError, match="agent DQN cannot be exported: "):
        Candidate(run, run.agent, "pt2", tmp_path / "model.pt2", inputs)


def test_pruning_zeroes_the_smallest_weights_of_what_acts(tmp_path: Path) -> None:
    run, _ = made("dqn", tmp_path)
    agent = quantize.pruned(run.agent, run.spec, 0.5)
    before, after = (dict(x.named_parameters()) for x in (run.agent, agent))
    names = [name for name, x in before.items() if name.startswith("online") and x.dim() > 1]
    old = torch.cat([before[name].flatten() for name in names])
    new = torch.cat([after[name].flatten() for name in names])
    median = old.abs().sort().values[round(0.5 * len(old)) - 1]
    assert torch.equal(new, old * (old.abs() > median)) and (new == 0).sum() == round(0.5 * len(old))
    for name in set(before) - set(names):  # biases and the target network
        assert torch.equal(before[name], after[name])


def test_spaces_as_plain_values() -> None:
    image = spaces.Box(0, 255, (1,), np.uint8)
    parts = {"a": spaces.Box(-np.inf, 1.0, (2,)), "b": spaces.Tuple([spaces.Discrete(3, start=1)]), "c": image}
    found = space_json(spaces.Dict(parts))["spaces"]
    assert found["a"] == {"type": "Box", "shape": [2], "dtype": "float32", "low": None, "high": 1.0}
    assert found["b"]["spaces"] == [{"type": "Discrete", "shape": [], "dtype": "int64", "n": 3, "start": 1}]
    assert json.loads(json.dumps(found)) == found


def test_safetensors_come_back_as_a_run(finished: Path, tmp_path: Path) -> None:
    made = export(finished, "safetensors", tmp_path / "model.safetensors")
    shutil.copytree(tmp_path, tmp_path.parent / "moved")
    back, run = load_export(tmp_path.parent / "moved" / made.path.name), rlcore.load(finished)
    assert back.evaluate(3)["returns"] == run.evaluate(3)["returns"]
    (tmp_path / "model.safetensors.json").unlink()
    with pytest.raises(UserError, match=r"model.safetensors.json beside it"):
        load_export(made.path)


def test_the_command(finished: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "m" / "model.pt2"
    called = command("export", finished, "--format", "pt2", "--out", out, "--prune", "0.5", "--episodes", "2")
    assert called.code == 0, called.err
    assert "differs from the agent by" in called.out and "pruned50" in called.out
    about = json.loads((out.parent / "model.pt2.json").read_text())
    assert about["inputs"] == [{"name": "obs", "dtype": "float32", "shape": ["batch", 4]}]
    assert [port["name"] for port in about["outputs"]] == ["action", "q_values"]
    assert about["checked"]["observations"] == 1000 and about["checked"]["largest"] <= 1e-5
    assert sorted(x.name for x in out.parent.iterdir()) == ["model.pt2", "model.pt2.json"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--format", "keras"), "--format: got 'keras', expected onnx, pt2, torchscript, safetensors"),
        (("--format", "pt2", "--quantize", "int8"), "--quantize int8: got --format pt2, expected onnx"),
        (("--quantize", "int4"), "--quantize: got 'int4', expected int8 or bf16"),
        (("--prune", "1"), "--prune: got 1, expected a fraction"),
        (("--format", "pt2", "--opset", "18"), "--opset: got 18, expected none beside --format pt2"),
        (("--format", "pt2", "--out", "."), "--out .: got a folder, expected a file"),
        (("--format", "pt2", "--out", "/dev/null/model.pt2"), "--out: cannot write to '/dev/null'"),
    ],
)
def test_bad_options(argv: tuple[str, ...], said: str, finished: Path, command: Command) -> None:
    called = command("export", finished, *argv)
    assert called.code != 0 and said in called.err and not (finished / "export").exists()


@ONNX
def test_an_opset_that_cannot_be_had_is_not_replaced_by_another(finished: Path, command: Command) -> None:
    called = command("export", finished, "--opset", "99", "--out", "model.onnx")
    assert called.code != 0 and "--opset: got 99" in called.err and called.err.count("\n") == 1
    assert not Path("model.onnx").exists()


def test_without_the_extra_it_names_it(finished: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlcore.export.formats.find_spec", lambda name: None)
    called = command("export", finished)
    assert called.code != 0 and "pip install 'rlcore[export]'" in called.err


def _steps() -> list[list[str]]:
    """Return the Dockerfile's instructions as words."""
    text = (Path(__file__).parent.parent / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [line.split() for line in lines]


def test_the_dockerfile_copies_what_is_there_and_needed() -> None:
    root = Path(__file__).parent.parent
    copied = {name for words in _steps() if words[0] == "COPY" for name in words[1:-1]}
    assert all((root / name).exists() for name in copied)
    lets_in = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert lets_in == copied
    project = (root / "pyproject.toml").read_text()
    packages = re.search(r"^packages = \[(.*)\]", project, re.MULTILINE)
    assert packages
    assert {name.strip(' "').partition(".")[0] for name in packages[1].split(",")} | {"scripts"} <= copied
    install = next(" ".join(words) for words in _steps() if words[-1].startswith('".['))
    for extra in install.partition("[")[2].partition("]")[0].split(","):
        assert re.search(rf"^{extra} = ", project, re.MULTILINE), extra


def test_the_image_has_a_torch_without_cuda() -> None:
    steps = _steps()
    default = next(words[1] for words in steps if words[0] == "ARG").removeprefix("TORCH_INDEX=")
    assert default == "https://download.pytorch.org/whl/cpu"
    installs = [words for words in steps if words[:3] == ["RUN", "pip", "install"]]
    assert installs[0][-4:] == ["--no-deps", "--index-url", '"$TORCH_INDEX"', "torch"]  # before what depends on it
    assert all("constraints.txt" in words for words in installs)


@pytest.mark.parametrize("name", ["train", "evaluate", "predict"])
def test_the_containers_entry_runs_the_commands(name: str, tmp_path: Path) -> None:
    entry = json.loads(" ".join(next(words[1:] for words in _steps() if words[0] == "ENTRYPOINT")))
    tool = tmp_path / f"rlcore-{name}"
    tool.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    tool.chmod(0o755)
    ran = subprocess.run([*entry, name, "a b", "--x=[1, 2]"], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, text=True,
                         capture_output=True, check=True)  # fmt: skip
    assert ran.stdout == "a b|--x=[1, 2]|"
    scripts = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert f'rlcore-{name} = "rlcore.' in scripts
