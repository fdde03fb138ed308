"""Settings: recipes, overrides, and one clear sentence for each kind of mistake."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlcore import config as configs
from rlcore import plain_yaml
from rlcore.errors import UserError
from rlcore.fields import fields
from rlcore.schedules import Schedule

RECIPES = sorted(path.stem for path in configs.recipes().glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_its_dump_says_the_same(name: str) -> None:
    config = configs.validate(configs.read(name))
    assert config.recipe == name
    assert configs.validate(yaml.safe_load(configs.dump(config))) == config


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"optim": {"lrr": 1}}, "optim.lrr is not a setting; did you mean 'lr'?"),
        ({"optm": {}}, "optm is not a setting; did you mean 'optim'?"),
        ({"agent": {"gama": 1}}, "agent.gama is not a setting; did you mean 'gamma'?"),
        ({"source": {"name": "replay", "capcity": 3}}, "source.capcity is not a setting; did you mean 'capacity'?"),
        ({"source": {"name": "replai"}}, "source.name: got 'replai', expected replay, rollout, dataset; did you mean"),
        ({"agent": {"name": "dqm"}}, "agent 'dqm' is unknown; did you mean 'dqn'?"),
        ({"agent": 3}, "agent: 3 is not a mapping"),
        ({"seed": "x"}, "seed: got 'x', expected a valid integer"),
        ({"seed": -1}, "seed: got -1, expected greater than or equal to 0"),
        ({"env": {"num_envs": 0}}, "env.num_envs: got 0, expected greater than or equal to 1"),
        ({"optim": {"lr": float("nan")}}, "optim.lr: got nan, expected a finite number"),
        ({"optim": {"lr": 0}}, "optim.lr: got 0, expected greater than 0"),
        ({"optim": {"name": "adm"}}, "optim.name: got 'adm', expected 'sgd', 'adam'"),
        ({"optim": 3}, "optim: got 3, expected a valid dictionary"),
        ({"device": "gpu"}, "device: got 'gpu', expected cpu, cuda, cuda:N or mps"),
        (
            {"agent": {"epsilon": {"kind": "exponential", "end": 0}}},
            "start and end above 0 for an exponential schedule",
        ),
        ({"agent": {"epsilon": "often"}}, "agent.epsilon.start: got 'often', expected a valid number"),
        ({"source": {"beta": 3}}, "source.beta.start: got 3, expected less than or equal to 1"),
        ({"source": {"beta": {"end": -1.0}}}, "source.beta.end: got -1.0, expected greater than or equal to 0"),
        (
            {
                "agent": {
                    "munchausen": True,
                    "n_step": 3,
                    "network": {"kwargs": {"hidden": [64, 64], "activation": "relu"}},
                }
            },
            "agent: expected n_step 1 with munchausen",
        ),
    ],
)
def test_bad_settings_get_one_sentence(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        configs.validate(raw)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_overriding_leaves_what_it_is_given_as_it_was() -> None:
    raw, changes = {"env": {"kwargs": {"frameskip": 1}}}, {"env.kwargs": {}, "env.kwargs.length": 2}
    for _ in range(2):  # the command line validates before it trains
        assert configs.override(raw, changes) == {"env": {"kwargs": {"length": 2}}}
    assert changes == {"env.kwargs": {}, "env.kwargs.length": 2}
    assert raw == {"env": {"kwargs": {"frameskip": 1}}}


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'cartpole_dqn'"):
        configs.read("cartpol_dqn")


def test_broken_yaml_names_file_and_line(tmp_path: Any) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("optim:\n  lr: [1\nseed: 2\n")
    with pytest.raises(UserError, match=r"broken\.yaml line 3: expected YAML"):
        configs.read(path)
    path.write_text("- 1\n")
    with pytest.raises(UserError, match="expected a mapping of settings, got list"):
        configs.read(path)


def test_overrides_reach_any_depth_and_leave_the_rest() -> None:
    raw = configs.read("cartpole_dqn")
    changed = configs.override(raw, {"optim.lr": 0.5, "env.kwargs.gravity": 3.0, "agent.epsilon.end": 0.2, "seed": 4})
    config = configs.validate(changed)
    assert (config.optim.lr, config.env.kwargs, config.agent.epsilon.end, config.seed) == (
        0.5,
        {"gravity": 3.0},
        0.2,
        4,
    )
    same = configs.validate(configs.override(changed, {k: raw[k] for k in ("optim", "env", "agent")} | {"seed": 0}))
    assert same.agent.epsilon.end == raw["agent"]["epsilon"]["end"]


def test_an_override_may_be_a_mapping_or_replace_a_schedule_by_a_number() -> None:
    config = configs.validate(
        configs.override(configs.read("cartpole_dqn"), {"optim": {"lr": 0.5}, "agent.epsilon": 0.1})
    )
    assert config.optim.lr == 0.5
    assert config.optim.clip == configs.validate(configs.read("cartpole_dqn")).optim.clip
    assert config.agent.epsilon(0.0) == config.agent.epsilon(1.0) == 0.1


def test_another_agent_by_name_starts_from_its_own_defaults() -> None:
    raw = configs.override(configs.read("cartpole_dqn"), {"agent.name": "supervised", "source.name": "dataset"})
    config = configs.validate(raw)
    assert config.agent.name == "supervised"
    assert config.source.name == "dataset"


def test_another_network_source_or_environment_by_name_drops_the_old_ones_options() -> None:
    raw = {
        "env": {"id": "CartPole-v1", "num_envs": 3, "kwargs": {"gravity": 2.0}},
        "agent": {"gamma": 0.5, "network": {"name": "mlp", "kwargs": {"hidden": [3]}}},
        "source": {"name": "replay", "capacity": 9},
    }
    changes = {"env.id": "Acrobot-v1", "agent.network.name": "nature_cnn", "source": {"name": "rollout", "horizon": 5}}
    changed = configs.override(raw, changes)
    assert changed["env"] == {"id": "Acrobot-v1", "num_envs": 3, "kwargs": {}}
    assert changed["agent"] == {"gamma": 0.5, "network": {"name": "nature_cnn"}}
    assert changed["source"] == {"name": "rollout", "horizon": 5}
    same = {"env.id": "CartPole-v1", "agent.name": "dqn", "agent.network.name": "mlp", "source.name": "replay"}
    unchanged = configs.override(raw, same)
    assert configs.validate(unchanged) == configs.validate(raw)
    assert configs.override(raw, {"env.kwargs": {}})["env"]["kwargs"] == {}


def test_a_field_left_out_of_a_mapping_has_the_default_that_the_help_shows() -> None:
    config = configs.validate({"agent": {"epsilon": {"end": 0.2}}, "source": {"capacity": 7}})
    assert config.agent.epsilon.model_dump() == Schedule(kind="linear", start=1.0, end=0.2, fraction=0.2).model_dump()
    assert config.source.capacity == 7
    assert config.source.batch_size == 128


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)
NAMES = [name for name, _, _ in fields(configs.Config[configs.agent_config("dqn")])]


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine draws slowly
@given(changes=st.dictionaries(st.sampled_from([*NAMES, "agent", "source", "env", "optim"]), VALUES, max_size=3))
def test_settings_are_valid_or_told_in_a_sentence(changes: dict[str, Any]) -> None:
    with contextlib.suppress(UserError):
        configs.validate(configs.override(configs.read("cartpole_dqn"), changes))


def test_numbers_in_scientific_notation_are_numbers() -> None:
    assert plain_yaml.parse("1e-3", "x") == 0.001
    assert plain_yaml.parse("[1e5, -2E+3, 1e, e3]", "x") == [1e5, -2e3, "1e", "e3"]


def test_the_sign_of_a_block_alone_is_a_string() -> None:
    assert [plain_yaml.parse(text, "x") for text in ("|", ">", " |- ")] == ["|", ">", "|-"]
    assert plain_yaml.parse("a: |\n  b\n", "x") == {"a": "b\n"}


def test_every_field_has_a_description() -> None:
    for name in ("dqn", "supervised"):
        model = configs.Config[configs.agent_config(name)]
        assert [n for n, _, text in fields(model) if not text] == []
