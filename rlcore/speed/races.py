"""Ours beside other libraries: DQN, PPO, PQN and SAC at the same settings, and the time to solve CartPole."""

from __future__ import annotations

from dataclasses import replace

from rlcore import config as configs
from rlcore.speed.accelerator import LARGE
from rlcore.speed.contenders import COMPILED, EAGER, by_size, cleanrl, mine, peer, sb3
from rlcore.speed.peer import GOAL
from rlcore.speed.published import CLEAN, CLEAN_SHORT, PPO, PQN, SB3_PPO, ZOO, ZOO_DQN, ZOO_PPO, ZOO_SHORT
from rlcore.speed.settings import Comparison, Contender, Size

EVERY = 2_500  # frames between evaluations, where the time to solve CartPole is measured


def dqn(size: Size) -> list[Comparison]:
    """Return DQN at the zoo's and at CleanRL's settings, and a long run with compiling."""
    zoo = by_size(size, 2_000, 8_000, 50_000)
    clean = by_size(size, 11_000, 100_000, 500_000)
    long = by_size(size, 4_000, 500_000, 500_000)
    gymnasium = {"env.backend": "sync"}
    at_zoo = [
        mine("ours, eager", ZOO, zoo, 9),
        mine("ours, compiled", ZOO, zoo, 8, compiled=True),
        mine("ours, eager, gymnasium's environment", ZOO, zoo, 10, overrides=gymnasium),
        sb3("DQN", ZOO_DQN, zoo, 14),
        peer("Tianshou DQN", "tianshou", ZOO_SHORT, zoo, 15),
        peer("TorchRL DQN", "torchrl", ZOO_SHORT, zoo, 18),
    ]
    at_clean = [
        mine("ours, eager", CLEAN, clean, 20),
        mine("ours, compiled", CLEAN, clean, 11, compiled=True),
        cleanrl("dqn.py", clean, 0.1 * (1 - 10_000 / clean), 22),
        peer("Tianshou DQN", "tianshou", CLEAN_SHORT, clean, 65),
    ]
    some = by_size(size, 4_000, 100_000, 500_000)
    at_length = [
        Contender("ours, compiled", "ours", {"config": ZOO, "overrides": COMPILED, "frames": long}, 200),
        mine("ours, eager", ZOO, some, 60),
        sb3("DQN", ZOO_DQN, some, 95),
    ]
    ours, n = ["ours, eager", "ours, compiled"], by_size(size, 2, 5, 5)
    return [
        Comparison("dqn", "zoo", "DQN at the zoo's CartPole settings", "race", at_zoo, n, ours=ours, about=_ZOO_ABOUT),
        Comparison("dqn", "cleanrl", "DQN at CleanRL's settings", "race", at_clean, n, ours=ours, about=_CLEAN_ABOUT),
        Comparison(
            "dqn_long", "zoo_long", "DQN at the zoo's settings, a long run with its compile time", "race",
            at_length, repeats=1, ours=["ours, compiled"],
            about=f"As in the first table. Ours, compiled, trains for {long:,} frames; the others, whose rates "
            f"are steady, for {some:,}. The frames before the first update are a smaller share than there.",
        ),
    ]  # fmt: skip


_ZOO_ABOUT = (
    "One environment, two layers of 256, batch 64, 128 updates after every 256 frames. The same settings for all. "
    "What differs: our environment is the native one unless said (Stable-Baselines3, Tianshou and TorchRL step "
    "gymnasium's), the target network is copied every 10 frames by Stable-Baselines3, so before each 128 updates, "
    "and once with each 128 by the others. Compilation is left out here and told apart."
)
_CLEAN_ABOUT = (
    "One environment, layers of 120 and 84, batch 128, one update every 10 frames after 10,000 frames, target copied "
    "every 500 frames, as in its dqn.py. CleanRL steps gymnasium's environment and writes TensorBoard files; Tianshou "
    "steps gymnasium's; ours the native one, and reads its metrics every 1,000 frames."
)


def solve(size: Size) -> Comparison:
    """Return the time to solve CartPole."""
    seeds = by_size(size, 1, 10, 10)
    budget = by_size(size, 3_000, 500_000, 500_000)

    def recipe(name: str) -> Contender:
        frames = min(configs.validate(configs.read(name)).budget.frames, budget)
        return Contender(name, "ours", {"config": name, "overrides": EAGER, "frames": frames}, 10)

    fast = sorted(path.stem for path in configs.recipes().glob("cartpole_fast_*.yaml"))
    ours = [recipe(name) for name in (*fast, "cartpole_dqn", "cartpole_pqn")]
    theirs = [
        sb3("DQN", ZOO_DQN, min(50_000, budget), 70),
        sb3("PPO", ZOO_PPO, min(100_000, budget), 50, num_envs=8),
        peer("Tianshou DQN", "tianshou", ZOO_SHORT, min(50_000, budget), 70),
        cleanrl("pqn.py", budget, 16 / 512, 90),
        *([cleanrl("dqn.py", budget, 0.1, 180)] if size == "full" else []),
    ]
    contenders = [replace(c, job={**c.job, "every": EVERY}) for c in (*ours, *theirs)]
    about = (
        f"Training ends at the first evaluation of 100 greedy episodes that averages {GOAL:g} or more and that 100 "
        f"others confirm; every library is evaluated by the same code every {EVERY:,} frames, and evaluations do "
        "not count as training. A seed that does not get there counts with all its budget: the library's own published "
        "number of frames (50,000 for the zoo's DQN, 100,000 for its PPO, 500,000 for CleanRL). The whole process has "
        "everything in it: start, evaluations, end. "
    )
    title = "Time to solve CartPole-v1"
    return Comparison("solve", "cartpole", title, "solve", contenders, repeats=seeds, unit="s", about=about)


def on_policy(size: Size) -> list[Comparison]:
    """Return PPO and PQN at CleanRL's settings."""
    frames = by_size(size, 2_048, 20_480, 500_000)
    pqn = by_size(size, 2_048, 51_200, 500_000)
    ours, n = ["ours, eager", "ours, compiled"], by_size(size, 2, 5, 5)
    at_ppo = [
        mine("ours, eager", PPO, frames, 8),
        mine("ours, compiled", PPO, frames, 6, compiled=True),
        cleanrl("ppo.py", frames, 16 / 512, 25),
        sb3("PPO", SB3_PPO, frames, 20, num_envs=4),
    ]
    at_pqn = [
        mine("ours, eager", PQN, pqn, 8),
        mine("ours, compiled", PQN, pqn, 6, compiled=True),
        cleanrl("pqn.py", pqn, 16 / 512, 15),
    ]
    about = (
        "4 environments, 128 steps, 4 epochs of 4 minibatches. CleanRL and Stable-Baselines3 step gymnasium's "
        "environment, ours is the native one. "
    )
    return [
        Comparison("ppo", "cleanrl", "PPO at CleanRL's settings", "race", at_ppo, n, ours=ours, about=about),
        Comparison("pqn", "cleanrl", "PQN at CleanRL's settings", "race", at_pqn, n, ours=ours, about=about),
    ]


def many(size: Size) -> Comparison:
    """Return PQN and DQN in thousands of environments."""
    frames = by_size(size, 2**18, 2**23, 2**25)
    contenders = [
        mine(f"{name}, {how}", recipe, frames, 25, compiled=how == "compiled")
        for name, recipe in LARGE.items()
        for how in ("eager", "compiled")
    ]
    about = (
        "4,096 native environments at once: `cartpole_many_pqn` learns from every frame once, `cartpole_many_dqn` from "
        "an item for each frame. "
    )
    return Comparison("many", "cartpole", "Thousands of environments", "race", contenders, about=about)


def sac(size: Size) -> Comparison:
    """Return SAC on HalfCheetah."""
    frames = by_size(size, 1_050, 10_000, 10_000)
    options = {"learning_starts": 1_000, "batch_size": 256, "learning_rate": 3e-4, "buffer_size": 50_000}
    theirs = sb3("SAC", options, frames, 120)
    contenders = [
        mine("ours, eager", "halfcheetah_sac", frames, 80),
        mine("ours, compiled", "halfcheetah_sac", frames, 60, compiled=True),
        Contender(theirs.name, "sb3", {**theirs.job, "env": "HalfCheetah-v5"}, theirs.about),
    ]
    about = (
        f"MuJoCo's HalfCheetah-v5, {frames:,} frames, two layers of 256, batch 256, one update a frame after 1,000. "
    )
    ours = ["ours, eager", "ours, compiled"]
    turns = by_size(size, 2, 3, 3)
    return Comparison("sac", "halfcheetah", "SAC on HalfCheetah-v5", "race", contenders, turns, ours=ours, about=about)
