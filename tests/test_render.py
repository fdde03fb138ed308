"""Films of episodes: what is drawn, that it is the episode that evaluation plays, and that training never notices."""

from __future__ import annotations

import io
import json
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pygame
import pytest
import torch
from conftest import SMALL, Command, assert_same_run
from gymnasium import spaces
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rlcore
from agents.dqn import DQN
from rlcore import build, names, render, video
from rlcore import config as configs
from rlcore.evaluation import play as evaluated
from rlcore.logger import Logger
from rlcore.panel import CHOSEN, LOWEST, OTHER, WIDTH, Moment, Panel
from rlcore.run import load
from rlcore.testing.agents import check_insight
from rlcore.trainer import Trainer

LOWEST_FLOAT = np.finfo(np.float32).min


def panel(space: Any = None, labels: tuple[str, ...] = ("left", "right")) -> Panel:
    return Panel("title", spaces.Discrete(2) if space is None else space, labels)


# What is drawn


def test_bars_of_values_go_from_their_mean() -> None:
    heading, (left, right) = panel().rows(np.array(1), {"q": np.array([1.0, 3.0], np.float32)})
    assert heading.startswith("Q-values")
    assert (left.start, left.end, left.text, left.chosen) == (0.5, 0.0, "1.00", False)
    assert (right.start, right.end, right.text, right.chosen) == (0.5, 1.0, "3.00", True)


def test_the_scale_of_bars_is_the_largest_difference_so_far() -> None:
    shown = panel()
    shown.rows(np.array(1), {"q": np.array([1.0, 3.0], np.float32)})
    _, rows = shown.rows(np.array(0), {"q": np.array([11.0, 10.0], np.float32)})
    assert [row.end for row in rows] == [0.75, 0.25]


def test_forbidden_actions_have_no_bar() -> None:
    shown = panel(spaces.Discrete(3), ("a", "b", "c"))
    _, rows = shown.rows(np.array(2), {"q": np.array([2.0, LOWEST_FLOAT, 4.0], np.float32)})
    assert [(row.end, row.text) for row in rows] == [(0.0, "2.00"), (0.5, "-"), (1.0, "4.00")]


def test_bars_of_probabilities_and_of_actions() -> None:
    heading, rows = panel().rows(np.array(0), {"probabilities": np.array([0.75, 0.25]), "value": np.array(3.0)})
    assert heading == "probabilities"
    assert [(row.start, row.end, row.text, row.chosen) for row in rows] == [
        (0, 0.75, "0.750", True),
        (0, 0.25, "0.250", False),
    ]
    bounded = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 4], np.float32))
    _, rows = panel(bounded).rows(np.array([-1.0, 1.0]), {"q": np.array(1.0)})
    assert [(row.start, row.end, row.text) for row in rows] == [(0.5, 0.25, "-1.00"), (0.0, 0.25, "1.00")]
    _, rows = panel(spaces.Box(-np.inf, np.inf, (2,))).rows(np.array([3.0, 0.0]), {})
    assert [(row.start, row.end) for row in rows] == [(0.25, 1.0), (0.5, 0.5)]
    _, rows = panel(spaces.MultiDiscrete([3, 3])).rows(np.array([2, 0]), {"probabilities": np.ones((2, 3)) / 3})
    assert [row.text for row in rows] == ["2", "0"]


def test_the_picture_stays_as_it_is_and_the_chosen_bar_stands_out() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (401, 301, 3), np.uint8)
    shown = panel()
    out = shown.beside(Moment(picture, 3, 12.0, np.array(1), {"q": np.array([1.0, 3.0], np.float32)}))
    assert out.shape == (400, 300 + WIDTH, 3)
    assert np.array_equal(out[:, :300], picture[:400, :300])
    side = out[:, 300 + 60 :]  # without the wedge that marks the choice
    chosen, other = ((side == colour).all(-1).nonzero()[0] for colour in (CHOSEN, OTHER))
    assert chosen.size > 500
    assert other.size > 500
    assert other.max() < chosen.min(), "the bars are not in the order of the actions"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_agent_that_diverged_is_drawn(bad: float) -> None:
    for space, insight in (
        (spaces.Discrete(2), {"q": np.array([bad, 1.0], np.float32)}),
        (spaces.Discrete(2), {"q": np.array([bad, bad], np.float32)}),
        (spaces.Discrete(2), {"probabilities": np.array([bad, bad]), "value": np.array(bad)}),
        (spaces.Box(-1, 1, (2,)), {}),
    ):
        shown, blank = panel(space), np.zeros((320, 10, 3), np.uint8)
        action = np.array(1) if insight else np.array([bad, 0.0])
        for total in (0.0, bad, 1e300):
            out = shown.beside(Moment(blank, 0, total, action, insight))
            assert out.shape == (320, 10 + WIDTH, 3)


def test_small_pictures_are_enlarged() -> None:
    out = panel().beside(Moment(np.full((80, 40, 3), 7, np.uint8), 0, 0.0, np.array(0), {}))
    assert out.shape == (LOWEST, 160 + WIDTH, 3)
    assert (out[:, :160] == 7).all()


def test_of_many_actions_the_best_are_shown() -> None:
    shown = panel(spaces.Discrete(60), tuple(map(str, range(60))))
    q = np.arange(60, dtype=np.float32)
    out = shown.draw(Moment(np.zeros((1, 1, 3), np.uint8), 0, 0.0, np.array(59), {"q": q}), 320)
    assert (out == CHOSEN).all(-1).sum() > 100, "the chosen one is left out"


def test_the_end_says_how_and_keeps_the_last_numbers() -> None:
    shown, blank = panel(), np.zeros((320, 10, 3), np.uint8)
    before = shown.beside(Moment(blank, 0, 0.0, np.array(1), {"q": np.array([1.0, 3.0], np.float32)}))
    end = shown.beside(Moment(blank, 1, 1.0, ended="terminated"))
    assert np.array_equal(before[76:130], end[76:130])
    assert not np.array_equal(before[:60], end[:60])


IDS = ["CartPole-v1", "CartPolePositions-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0"]
IDS += ["LunarLander-v3", "PixelBreakout-v0", "FrozenLake-v1", "CliffWalking-v1", "Taxi-v4"]


def test_names_are_as_many_as_the_numbers() -> None:
    by_name = {env_id.partition("-v")[0]: env_id for env_id in IDS}
    for table in (names.OBSERVATIONS, names.ACTIONS):
        for name, known in table.items():
            spec = build.env(configs.EnvConfig(id=by_name[name]), num_envs=1).spec
            space: Any = spec.obs_space if table is names.OBSERVATIONS else spec.action_space
            count = int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape))
            assert len(known) == count, name
    assert names.observations("CartPole-v1", 4)[0] == "cart position"
    assert names.observations("Unknown-v3", 2) == ["obs[0]", "obs[1]"]


# Episodes


def run_of(recipe: str, out: Path, **more: Any) -> rlcore.Run:
    settings = {"budget.frames": 64, "eval.every": 0, "eval.use": "last", "stop.metric": "", "compile": "off"}
    return rlcore.train(recipe, out=out, **{**settings, "eval.final_episodes": 1, "eval.max_steps": 40, **more})


@pytest.mark.parametrize(
    ("recipe", "more", "shown"),
    [
        ("cartpole_dqn", {}, {"q"}),
        ("cartpole_memory_ppo", {}, {"probabilities", "value"}),
        ("pendulum_td3", {}, {"q"}),
        ("pendulum_ppo", {}, {"value"}),
        ("cartpole_dqn", {"env.id": "FrozenLake-v1"}, {"q"}),
        ("cartpole_dqn", {"env.id": "PixelBreakout-v0"}, {"q"}),
        ("bit_flip", {"env.kwargs.bits": 6}, {"q"}),
        ("cartpole_dqn", {"env.id": "MinAtar/Breakout-v1"}, {"q"}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
@pytest.mark.filterwarnings("ignore:.*render:UserWarning")  # MinAtar's pictures are floats
def test_the_episode_is_that_of_the_evaluation(
    recipe: str, more: dict[str, Any], shown: set[str], tmp_path: Path
) -> None:
    run = run_of(recipe, tmp_path / "run", **more)
    env = video.stage(run.config, "test", "here")
    moments = list(video.play(run.agent, env, 77, 40))
    known = evaluated(run.agent, build.evaluation_env(run.config, "test", 1), 1, 77, 40)
    assert moments[-1].total == pytest.approx(float(known.returns), abs=1e-6)
    assert moments[-1].step == int(known.lengths) == len(moments) - 1
    assert [moment.step for moment in moments] == list(range(len(moments)))
    assert all({*moment.insight} == shown for moment in moments[:-1])
    assert moments[-1].action is None
    assert moments[-1].ended
    draw = video.panel(run.config, env)
    assert len({draw.beside(moment).shape for moment in moments}) == 1
    assert all(moment.picture.std() > 0 for moment in moments), "the pictures are empty"
    env.close()


def test_a_memory_is_carried_through_the_episode(tmp_path: Path) -> None:
    run = run_of("cartpole_memory_ppo", tmp_path / "run")
    env = video.stage(run.config, "test", "here")
    moments = list(video.play(run.agent, env, 77, 10))
    obs, state = env.reset(77)[0], run.agent.initial_state(1)
    with torch.no_grad():
        for moment in moments[:-1]:
            assert torch.equal(run.agent.insight(obs, state)["value"][0], torch.as_tensor(moment.insight["value"]))
            act = run.agent.act(obs, state, {}, {}, None, explore=False)
            obs, state = env.step(act.action).obs, act.state
    env.close()


# Files and windows


def test_a_gif_shows_the_episode_that_is_evaluated_first(command: Command, finished: Path) -> None:
    done = command("evaluate", finished, "--render", "episode.gif", "--json")
    result = json.loads(done.out)
    assert f"return {result['returns'][0]:.6g} to episode.gif" in done.err
    with Image.open("episode.gif") as gif:
        length = 0
        for frame in range(gif.n_frames):
            gif.seek(frame)
            length += gif.info["duration"]
        assert gif.size == (600 + WIDTH, 400)
        assert length == 20 * (result["returns"][0] + 1)  # 50 frames a second, the first and the last state too
        colours = np.asarray(gif.convert("RGB"))[:, 600:].reshape(-1, 3)
        assert (np.abs(colours.astype(int) - CHOSEN).sum(-1) < 30).sum() > 100, "no bar of the chosen action"


def test_a_film_has_every_picture(command: Command, finished: Path) -> None:
    done = command("evaluate", finished, "--render", "episode.mp4", "--json")
    count = json.loads(done.out)["returns"][0] + 1
    assert imageio_ffmpeg.count_frames_and_secs("episode.mp4") == (count, pytest.approx(count / 50, abs=0.02))
    data = Path("episode.mp4").read_bytes()
    entry = data.index(b"avc1", data.index(b"stsd"))  # H.264
    assert struct.unpack(">HH", data[entry + 28 : entry + 32]) == (600 + WIDTH, 400)


def test_rendering_says_what_it_lacks(
    command: Command, finished: Path, regression: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target, sentence in (
        ("film.avi", "expected window, or FILE.gif or FILE.mp4"),
        ("no/film.gif", "in a folder that exists"),
    ):
        done = command("evaluate", finished, "--render", target)
        assert done.code == 2
        assert sentence in done.err
    assert "environment 'tabular' has no picture" in command("evaluate", regression, "--render", "x.gif").err
    for package, target in (("pygame", "x.gif"), ("imageio_ffmpeg", "x.mp4"), ("PIL", "x.gif")):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            done = command("evaluate", finished, "--render", target)
        assert done.code == 2
        assert package in done.err
        assert "rlcore[render]" in done.err
        assert done.err.count("\n") == 1
        assert not Path(target).exists()


def test_a_window_opens_and_closes(command: Command, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    done = command("evaluate", finished, "--render", "window", "--episodes", "1")
    assert done.code == 0
    assert "rendered an episode" in done.err


def test_a_window_shows_the_pictures_until_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    seen = []

    def pictures() -> Iterator[np.ndarray]:
        for i in range(10):
            if i:
                seen.append(tuple(pygame.display.get_surface().get_at((3, 5)))[:3])  # type: ignore[union-attr]
            if i == 4:
                pygame.event.post(pygame.event.Event(pygame.QUIT))
            yield np.full((40, 60, 3), (10 * i, 1, 2), np.uint8)

    render.show(pictures(), 1000, "title")
    assert seen == [(10 * i, 1, 2) for i in range(4)]
    assert not pygame.display.get_init()


# Films in TensorBoard


def films(run: Path) -> list[tuple[int, tuple[int, int]]]:
    """Return the frames at which films were logged, with their sizes."""
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    if "eval/episode" not in events.Tags()["images"]:
        return []
    shown = events.Images("eval/episode")
    assert all(Image.open(io.BytesIO(event.encoded_image_string)).is_animated for event in shown)  # type: ignore[attr-defined]
    return [(event.step, (event.width, event.height)) for event in shown]


FILMED: dict[str, Any] = {**SMALL, "budget.frames": 400, "eval.every": 100, "eval.episodes": 2}


def test_films_change_nothing_but_are_logged_at_every_other_evaluation(tmp_path: Path) -> None:
    with_films, without = tmp_path / "with", tmp_path / "without"
    rlcore.train("cartpole_dqn", out=with_films, **{**FILMED, "eval.video": 2})
    rlcore.train("cartpole_dqn", out=without, **FILMED)
    assert films(with_films) == [(200, (600 + WIDTH, 400)), (400, (600 + WIDTH, 400))]
    assert films(without) == []
    assert_same_run(with_films, without)


def test_a_film_leaves_the_agent_and_torch_as_they_were(tmp_path: Path) -> None:
    config = configs.validate(configs.override(configs.read("cartpole_dqn"), {**SMALL, "eval.max_steps": 10}))
    agent = build.trainer(config).agent.train()
    film, before = video.Film(config, Logger(tmp_path / "run")), torch.get_rng_state()
    film(agent, 7)
    assert agent.training
    assert torch.equal(before, torch.get_rng_state())
    assert [frames for frames, _ in films(tmp_path / "run")] == [7]
    film.close()


def test_films_after_the_checkpoint_are_cut_when_a_run_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    rlcore.train("cartpole_dqn", out=run, **{**FILMED, "eval.video": 1})
    shutil.rmtree(run / "checkpoints" / f"{400:012d}")
    Logger(run, resume_frames=200)
    assert [frames for frames, _ in films(run)] == [100, 200]
    rlcore.train(out=run, resume=True)
    assert [frames for frames, _ in films(run)] == [100, 200, 300, 400]


def test_films_need_a_picture_and_evaluations(command: Command) -> None:
    done = command("train", "line", "--eval.video=1", "--out", "run")
    assert done.code == 2
    assert "eval.video: environment 'line' has no picture" in done.err
    assert not Path("run").exists()
    done = command("train", "cartpole_dqn", "--eval.video=1", "--eval.every=0", "--stop.metric=", "--out", "run")
    assert "expected every above 0 beside video" in done.err


# The conformance check of what agents say


class Guessing(DQN):
    def insight(self, obs: Any, state: Any, mask: Any = None) -> dict[str, torch.Tensor]:
        q = super().insight(obs, state, mask)["q"]
        return {"q": q + torch.rand_like(q)}


class Learning(DQN):
    def insight(self, obs: Any, state: Any, mask: Any = None) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            next(self.online.parameters()).add_(0.0 * obs.sum() + 1e-3)
        return {}


class Pooled(DQN):
    def insight(self, obs: Any, state: Any, mask: Any = None) -> dict[str, torch.Tensor]:
        return {"q": super().insight(obs, state, mask)["q"].amax(-1)}


class Contrary(DQN):
    def insight(self, obs: Any, state: Any, mask: Any = None) -> dict[str, torch.Tensor]:
        return {"q": -super().insight(obs, state, mask)["q"]}


class Logits(DQN):
    def insight(self, obs: Any, state: Any, mask: Any = None) -> dict[str, torch.Tensor]:
        return {"probabilities": super().insight(obs, state, mask)["q"]}


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (Guessing, "two answers"),
        (Learning, "insight changed something"),
        (Pooled, "has shape"),
        (Contrary, "act does not choose"),
        (Logits, "do not add up to 1"),
    ],
)
def test_the_suite_catches(agent: type[DQN], message: str) -> None:
    config = configs.validate(configs.override(configs.read("cartpole_dqn"), SMALL))
    trainer: Trainer = build.trainer(config)
    check_insight(trainer)
    trainer.agent.__class__ = agent
    with pytest.raises(AssertionError, match=message):
        check_insight(trainer)


def test_a_loaded_run_is_rendered_alike_twice(finished: Path, tmp_path: Path) -> None:
    totals = [render.render(load(finished), str(tmp_path / name), seed=5) for name in ("a.gif", "b.gif")]
    assert totals[0] == totals[1]
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
