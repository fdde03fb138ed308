"""What `benchmark.py speed` measures: comparisons of contenders, each set up in its own library's words.

Sizes: "quick" only shows that everything runs; "standard" takes about 35 minutes with nothing else running; "full"
trains as long as each library's published settings do.
"""

from __future__ import annotations

from typing import Any

from rlcore import config as configs
from rlcore.speed.accelerator import accelerated
from rlcore.speed.peer import GOAL, Job
from rlcore.speed.settings import Comparison, Contender, Size

EVERY = 2_500  # frames between evaluations, where the time to solve CartPole is measured

PARTS = (
    "dqn",
    "dqn_long",
    "solve",
    "ppo",
    "pqn",
    "sac",
    "envs",
    "replay",
    "hosting",
    "memory",
    "startup",
    "nanogpt",
    "nanogpt_loss",
    "gpu",
)
NANOGPT_LOSS = 1.88  # what its README reports for this setting
_EAGER, _COMPILED = {"compile": "off"}, {"compile": "on"}
_FAST_TEXT = {**_EAGER, "optim.lr": 3e-3}
_GPT = {"agent.network.kwargs.positions": "learned", "agent.network.kwargs.norm": "layer_norm"}
_ZOO_DQN = {
    "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1_000, "gamma": 0.99,
    "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128, "exploration_fraction": 0.16,
    "exploration_final_eps": 0.04, "policy_kwargs": {"net_arch": [256, 256]},
}  # fmt: skip
_ZOO_PPO = {
    "n_steps": 32, "batch_size": 256, "n_epochs": 20, "gae_lambda": 0.8, "gamma": 0.98, "ent_coef": 0.0,
    "learning_rate": ["linear", 1e-3], "clip_range": ["linear", 0.2],
}  # fmt: skip
_ZOO_SHORT = {
    "hidden": [256, 256], "lr": 2.3e-3, "gamma": 0.99, "batch_size": 64, "buffer_size": 100_000,
    "learning_starts": 1_000, "frames_per_iteration": 256, "updates_per_frame": 0.5, "target_every": 128,
    "huber": True, "epsilon": [1.0, 0.04, 0.16],
}  # fmt: skip
_CLEAN_SHORT = {
    "hidden": [120, 84], "lr": 2.5e-4, "gamma": 0.99, "batch_size": 128, "buffer_size": 10_000,
    "learning_starts": 10_000, "frames_per_iteration": 10, "updates_per_frame": 0.1, "target_every": 50,
    "huber": False, "epsilon": [1.0, 0.05, 0.5],
}  # fmt: skip


def _ours_dqn(short: dict[str, Any], target_every: int) -> dict[str, Any]:
    """Return our settings for a DQN that is described in short, with one environment."""
    start, end, fraction = short["epsilon"]
    return {
        "env": {"id": "CartPole-v1", "num_envs": 1},
        "agent": {
            "name": "dqn",
            "network": {"name": "mlp", "kwargs": {"hidden": short["hidden"]}},
            "gamma": short["gamma"],
            "loss": "huber" if short["huber"] else "mse",
            "epsilon": {"kind": "linear", "start": start, "end": end, "fraction": fraction},
            "target_every": target_every,
        },
        "source": {
            "name": "replay",
            "capacity": short["buffer_size"],
            **{n: short[n] for n in ("batch_size", "learning_starts", "updates_per_frame", "frames_per_iteration")},
        },
        "optim": {"name": "adam", "lr": short["lr"]},
    }


def _ours_rollout(agent: dict[str, Any], optim: dict[str, Any]) -> dict[str, Any]:
    """Return our settings for CleanRL's PPO or PQN: 4 environments, 128 steps, 4 epochs of 4 minibatches."""
    return {
        "env": {"id": "CartPole-v1", "num_envs": 4},
        "agent": agent,
        "source": {"name": "rollout", "horizon": 128, "epochs": 4, "minibatches": 4},
        "optim": {"lr": 2.5e-4, "schedule": {"kind": "linear", "start": 1.0, "end": 0.0}, **optim},
    }


_ZOO, _CLEAN = _ours_dqn(_ZOO_SHORT, 10), _ours_dqn(_CLEAN_SHORT, 500)
_PPO = _ours_rollout(
    {
        "name": "ppo", "network": {"name": "mlp", "kwargs": {"hidden": [64, 64], "activation": "tanh"}},
        "gamma": 0.99, "lam": 0.95, "clip": 0.2, "value_clip": 0.2, "entropy_coef": 0.01, "value_coef": 0.5,
    },
    {"name": "adam", "eps": 1e-5, "clip": 0.5},
)  # fmt: skip
_PQN = _ours_rollout(
    {
        "name": "pqn", "network": {"name": "mlp", "kwargs": {"hidden": [120, 84], "layer_norm": True}},
        "gamma": 0.99, "lam": 0.65, "epsilon": {"kind": "linear", "start": 1.0, "end": 0.05, "fraction": 0.5},
    },
    {"name": "radam", "clip": 10.0},
)  # fmt: skip
_SB3_PPO = {
    "n_steps": 128, "batch_size": 128, "n_epochs": 4, "learning_rate": ["linear", 2.5e-4], "gamma": 0.99,
    "gae_lambda": 0.95, "ent_coef": 0.01, "vf_coef": 0.5, "clip_range": 0.2, "clip_range_vf": 0.2,
    "max_grad_norm": 0.5,
}  # fmt: skip


def _ours(name: str, config: Any, frames: int, about: float, compiled: bool = False, **more: Any) -> Contender:
    overrides = {**(_COMPILED if compiled else _EAGER), **more.pop("overrides", {})}
    job = {"config": config, "overrides": overrides, "frames": frames, **({"apart": True} if compiled else {}), **more}
    return Contender(name, "ours", job, about + 8 * compiled)


def _sb3(
    algorithm: str, options: dict[str, Any], frames: int, about: float, num_envs: int = 1, **more: Any
) -> Contender:
    job = {"algorithm": algorithm, "env": "CartPole-v1", "num_envs": num_envs, "options": options, "frames": frames}
    return Contender(f"Stable-Baselines3 {algorithm}", "sb3", {**job, **more}, about)


def _cleanrl(script: str, frames: int, updates: float, about: float, **more: Any) -> Contender:
    job = {"script": script, "arguments": [], "updates": updates, "frames": frames, **more}
    return Contender(f"CleanRL {script}", "cleanrl", job, about, needs="cleanrl")


def _peer(name: str, module: str, options: dict[str, Any], frames: int, about: float, **more: Any) -> Contender:
    return Contender(name, module, {"options": options, "frames": frames, **more}, about)


def comparisons(size: Size) -> list[Comparison]:
    """Return all that is measured, in the order of the page."""
    return [
        *_dqn(size),
        _solve(size),
        *_on_policy(size),
        _sac(size),
        *_values(size),
        *_nanogpt(size),
        *accelerated(size),
    ]


def _frames(size: Size, quick: int, standard: int, full: int) -> int:
    return {"quick": quick, "standard": standard, "full": full}[size]


def _dqn(size: Size) -> list[Comparison]:
    zoo = _frames(size, 2_000, 8_000, 50_000)
    clean = _frames(size, 11_000, 30_000, 500_000)
    long = _frames(size, 4_000, 150_000, 500_000)
    gymnasium = {"env.backend": "sync"}
    at_zoo = [
        _ours("ours, eager", _ZOO, zoo, 9),
        _ours("ours, compiled", _ZOO, zoo, 8, compiled=True),
        _ours("ours, eager, gymnasium's environment", _ZOO, zoo, 10, overrides=gymnasium),
        _sb3("DQN", _ZOO_DQN, zoo, 14),
        _peer("Tianshou DQN", "tianshou", _ZOO_SHORT, zoo, 15),
        _peer("TorchRL DQN", "torchrl", _ZOO_SHORT, zoo, 18),
    ]
    at_clean = [
        _ours("ours, eager", _CLEAN, clean, 7),
        _ours("ours, compiled", _CLEAN, clean, 8, compiled=True),
        _cleanrl("dqn.py", clean, 0.1 * (1 - 10_000 / clean), 15),
        _peer("Tianshou DQN", "tianshou", _CLEAN_SHORT, clean, 22),
    ]
    whole = Contender("ours, compiled", "ours", {"config": _ZOO, "overrides": _COMPILED, "frames": long}, 100)
    ours = ["ours, eager", "ours, compiled"]
    return [
        Comparison("dqn", "zoo", "DQN at the zoo's CartPole settings", "race", at_zoo, ours=ours, about=_ZOO_ABOUT),
        Comparison("dqn", "cleanrl", "DQN at CleanRL's settings", "race", at_clean, ours=ours, about=_CLEAN_ABOUT),
        Comparison(
            "dqn_long", "zoo_long", f"DQN at the zoo's settings for {long:,} frames, compile time included", "race",
            [whole], repeats=1, about="To be held against the frames per second of the table before it.",
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


def _solve(size: Size) -> Comparison:
    mine, theirs = {"quick": (1, 1), "standard": (10, 1), "full": (10, 10)}[size]
    budget = _frames(size, 3_000, 500_000, 500_000)

    def recipe(name: str) -> Contender:
        frames = min(configs.validate(configs.read(name)).budget.frames, budget)
        return Contender(name, "ours", {"config": name, "overrides": _EAGER, "frames": frames}, 10)

    fast = sorted(path.stem for path in configs.recipes().glob("cartpole_fast_*.yaml"))
    ours = [recipe(name) for name in (*fast, "cartpole_dqn", "cartpole_pqn")]
    theirs_at = [
        _sb3("DQN", _ZOO_DQN, min(50_000, budget), 70),
        _sb3("PPO", _ZOO_PPO, min(100_000, budget), 50, num_envs=8),
        _peer("Tianshou DQN", "tianshou", _ZOO_SHORT, min(50_000, budget), 70),
        _cleanrl("pqn.py", budget, 16 / 512, 90),
        *([_cleanrl("dqn.py", budget, 0.1, 180)] if size == "full" else []),
    ]
    contenders = [
        Contender(c.name, c.module, {**c.job, "every": EVERY}, c.about, n, c.needs)
        for group, n in ((ours, mine), (theirs_at, theirs))
        for c in group
    ]
    about = (
        f"Training ends at the first evaluation of 100 greedy episodes that averages {GOAL:g} or more and that 100 "
        f"others confirm; every library is evaluated by the same code every {EVERY:,} frames, and evaluations do "
        "not count as training. A seed that does not get there counts with all its budget: the library's own published "
        "number of frames (50,000 for the zoo's DQN, 100,000 for its PPO, 500,000 for CleanRL). The whole process has "
        "everything in it: start, evaluations, end. "
    )
    title = "Time to solve CartPole-v1"
    return Comparison("solve", "cartpole", title, "solve", contenders, repeats=mine, unit="s", about=about)


def _on_policy(size: Size) -> list[Comparison]:
    frames = _frames(size, 2_048, 20_480, 500_000)
    pqn = _frames(size, 2_048, 51_200, 500_000)
    ours = ["ours, eager", "ours, compiled"]
    at_ppo = [
        _ours("ours, eager", _PPO, frames, 8),
        _ours("ours, compiled", _PPO, frames, 6, compiled=True),
        _cleanrl("ppo.py", frames, 16 / 512, 25),
        _sb3("PPO", _SB3_PPO, frames, 20, num_envs=4),
    ]
    at_pqn = [
        _ours("ours, eager", _PQN, pqn, 8),
        _ours("ours, compiled", _PQN, pqn, 6, compiled=True),
        _cleanrl("pqn.py", pqn, 16 / 512, 15),
    ]
    about = (
        "4 environments, 128 steps, 4 epochs of 4 minibatches. CleanRL and Stable-Baselines3 step gymnasium's "
        "environment, ours is the native one. "
    )
    return [
        Comparison("ppo", "cleanrl", "PPO at CleanRL's settings", "race", at_ppo, ours=ours, about=about),
        Comparison("pqn", "cleanrl", "PQN at CleanRL's settings", "race", at_pqn, ours=ours, about=about),
    ]


def _sac(size: Size) -> Comparison:
    frames = _frames(size, 1_050, 2_500, 10_000)
    options = {"learning_starts": 1_000, "batch_size": 256, "learning_rate": 3e-4, "buffer_size": 50_000}
    theirs = _sb3("SAC", options, frames, 30)
    contenders = [
        _ours("ours, eager", "halfcheetah_sac", frames, 20),
        _ours("ours, compiled", "halfcheetah_sac", frames, 15, compiled=True),
        Contender(theirs.name, "sb3", {**theirs.job, "env": "HalfCheetah-v5"}, theirs.about),
    ]
    about = (
        f"MuJoCo's HalfCheetah-v5, {frames:,} frames, two layers of 256, batch 256, one update a frame after 1,000. "
    )
    ours = ["ours, eager", "ours, compiled"]
    return Comparison(
        "sac", "halfcheetah", "SAC on HalfCheetah-v5", "race", contenders, repeats=2, ours=ours, about=about
    )


def _values(size: Size) -> list[Comparison]:
    quick = size == "quick"
    recipes = {"house_prices": 100, "line": 100} if quick else {"house_prices": 1_500, "line": 1_500, "shakespeare": 30}

    def one(part: str, title: str, job: Job, about: str, seconds: float, repeats: int = 1) -> Comparison:
        kind = "rows" if job["what"] == "rows" else "values"
        return Comparison(part, part, title, kind, [Contender("", "costs", job, seconds)], repeats, about=about)

    def table(module: str) -> Job:
        return {"what": "rows", "module": f"rlcore.speed.{module}", "given": {"quick": True} if quick else {}}

    million = 20_000 if quick else 1_000_000
    return [
        one("envs", "Steps", {**table("envs"), "cores": 0}, "One thread, on any core (EnvPool has its own).", 90),
        one("replay", "Replay at 10^6 transitions", table("replay"), "Cold memory, 256 transitions drawn.", 60),
        one("hosting", "What hosting costs", {"what": "hosting", "recipes": recipes, "pairs": 3 if quick else 9},
            "The Trainer, which also logs, against a bare loop: same network, batches and fused optimiser.", 90),
        one("memory", "Peak memory", {"what": "memory", "transitions": million, "frames": 2_000 if quick else 100_000},
            "How much the process's peak grows when a buffer is built and filled, after a small one was.", 25),
        one("startup", "Start-up", {"what": "startup", "whole": not quick}, "Whole processes.", 30, 1 if quick else 3),
    ]  # fmt: skip


def _nanogpt(size: Size) -> list[Comparison]:
    quick = size == "quick"
    settings = {
        "device": "cpu", "compile": "False", "dataset": "shakespeare_char", "eval_iters": 20, "log_interval": 1,
        "block_size": 64, "batch_size": 12, "n_layer": 4, "n_head": 4, "n_embd": 128, "dropout": 0.0,
        "gradient_accumulation_steps": 1, "learning_rate": 1e-3, "min_lr": 1e-4, "beta2": 0.99, "warmup_iters": 100,
    }  # fmt: skip

    def theirs(updates: int, look: int, about: float) -> Contender:
        job = {"updates": updates, "look": look, "tokens": 768, "settings": settings, "text": ""}
        return Contender("nanoGPT train.py", "nanogpt", job, about, needs="nanogpt")

    short, whole, look = (10, 20, 10) if quick else (100, 2_000, 250)
    job: Job = {"config": "shakespeare", "tokens": 64, "text": ""}
    race = [
        Contender("ours, eager", "ours", {**job, "overrides": {**_EAGER, **_GPT}, "frames": 12 * short}, 12),
        Contender("ours, eager, `shakespeare`", "ours", {**job, "overrides": _EAGER, "frames": 12 * short}, 12),
        theirs(short, 10**9, 14),
    ]
    fast = {"goal": NANOGPT_LOSS, "look": 12 * (10 if quick else 100), "frames": 12 * (20 if quick else 1_000)}
    until = [
        Contender("ours, eager, `shakespeare`, 1,000 updates", "ours", {**job, **fast, "overrides": _FAST_TEXT}, 90),
        theirs(whole, look, 190),
    ]
    about = (
        "4 layers, 4 heads, width 128, context 64, batch 12, no dropout, characters of one text, eager. `shakespeare`, "
        "the recipe, has rotary positions and RMS norm. Evaluations do not count. "
    )
    losses = (
        f"nanoGPT makes its 2,000 updates; ours ends where its validation loss is {NANOGPT_LOSS} or less, looked at "
        "every 100 updates. nanoGPT's losses are means over 20 random batches, ours over the whole validation split. "
    )
    title = "nanoGPT's small CPU setting"
    return [
        Comparison("nanogpt", "tokens", title, "race", race, 3, "tokens/s", [race[0].name], about),
        Comparison("nanogpt_loss", "loss", "Until its validation loss", "loss", until, 1, "s", about=losses),
    ]
