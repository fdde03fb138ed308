"""What is measured of ours alone, or against bare tensors and other ways to do the same."""

from __future__ import annotations

from typing import Any

from rlcore.compiling import REPAYS
from rlcore.speed.contenders import COMPILED, EAGER, by_size, mine
from rlcore.speed.peer import Job
from rlcore.speed.published import CLEAN, ZOO
from rlcore.speed.settings import Comparison, Contender, Size


def _table(module: str, **given: Any) -> Job:
    return {"what": "rows", "module": f"rlcore.speed.{module}", "given": given}


def costs(size: Size) -> list[Comparison]:
    """Return environments first, then replay, hosting, memory and start-up."""
    quick = size == "quick"
    recipes = {"house_prices": 100, "line": 100} if quick else {"house_prices": 1_500, "line": 1_500, "shakespeare": 30}
    brief = {"quick": True} if quick else {}

    def one(part: str, title: str, job: Job, about: str, seconds: float, repeats: int = 1) -> Comparison:
        kind = "rows" if job["what"] == "rows" else "values"
        return Comparison(part, part, title, kind, [Contender("", "costs", job, seconds)], repeats, about=about)

    million, frames = (20_000, 2_000) if quick else (1_000_000, 1_000_000)
    return [
        one("envs", "Steps", {**_table("envs", **brief), "cores": 0},
            "One thread, on any core (EnvPool has its own).", 90),
        one("replay", "Replay at 10^6 transitions", _table("replay", **brief),
            "Cold memory, 256 transitions drawn.", 60),
        one("hosting", "What hosting costs", {"what": "hosting", "recipes": recipes, "pairs": 3 if quick else 9},
            "The Trainer, which also logs, against a bare loop: same network, batches and fused optimiser.", 90),
        one("memory", "Peak memory", {"what": "memory", "transitions": million, "frames": frames},
            "How much the process's peak grows when a buffer is built and filled, after a small one was.", 60),
        one("startup", "Start-up", {"what": "startup", "whole": not quick}, "Whole processes.", 30, 1 if quick else 3),
    ]  # fmt: skip


def compiling(size: Size) -> Comparison:
    """Return after how many updates compiling them has repaid itself."""
    repeats = by_size(size, 1, 2, 5)
    frames = {"cartpole_dqn": 9_000, "cartpole_ppo": 65_536, "pendulum_sac": 3_000}
    if size == "quick":
        frames = {"cartpole_dqn": 1_200}
    contenders = [
        Contender(name, "costs", _table("repays", name=name, config=name, frames=n, repeats=repeats), 45.0 * repeats)
        for name, n in frames.items()
    ]
    about = (
        f"`compile: auto` compiles from {REPAYS:,} planned updates on. Microseconds an update are those of training "
        "divided by its updates, so acting has its share; compiling is that of updates and of acting. It repays itself "
        "after the updates that save as much as it took: where nothing compiled was kept of a run before, and where it "
        "was. Medians of processes in turn."
    )
    return Comparison("compile", "repays", "When compiling repays itself", "rows", contenders, 1, about=about)


def seeds_together(size: Size) -> list[Comparison]:
    """Return what training ten seeds in one process saves."""
    quick = size == "quick"
    given = {"seeds": 2 if quick else 10, "frames": by_size(size, 1_200, 10_000, 50_000)}
    given |= {"updates": 5, "pairs": 3} if quick else {"updates": 200, "pairs": 15}
    plain = {"agent": {"network": {"kwargs": {"layer_norm": False}}, "double": False}, "source": {"batch_size": 64}}
    runs = {"two layers of 64, batches of 64": plain, "`cartpole_dqn`: layer norm, Double, batches of 128": {}}
    contenders = [
        Contender(name, "costs", _table("seeds", name=name, recipe="cartpole_dqn", settings=settings, **given), 130)
        for name, settings in runs.items()
    ]
    about = (
        f"CPU time: an update of {given['seeds']} seeds on fixed batches beside one seed's, in turn, and a study of as "
        f"many, {given['frames']:,} frames each, final evaluations and files included, beside its runs one after "
        "another. Start-up, imports and what compiling keeps were paid before."
    )
    brief = {"seeds": 2, "settings": {"budget.frames": 1_200, "eval.every": 600}} if quick else {}
    whole = [Contender("cartpole_dqn", "costs", _table("studies", recipe="cartpole_dqn", **brief), 180)]
    said = (
        "The recipe as shipped, whose runs end at different moments, when they have solved it. Whole processes, from "
        "start to the printed evaluation: `train.py RECIPE --seed N` ten times, and `train.py RECIPE --seeds 10` once."
    )
    return [
        Comparison("seeds", "together", "Many seeds in one process", "rows", contenders, 1, about=about),
        Comparison("seeds", "studies", "A study by one command", "rows", whole, 1, about=said),
    ]


def data_parallel(size: Size) -> Comparison:
    """Return training by two ranks beside training by one process."""
    frames = {"cartpole_dqn": 12_000, "cartpole_ppo": 65_536, "shakespeare": 3_600}
    if size == "quick":
        frames = {"cartpole_ppo": 4_096}
    contenders = [
        Contender(name, "costs", {**_table("ranks", recipe=name, frames=n), "cores": 0}, 40)
        for name, n in frames.items()
    ]
    about = (
        "On all cores: `torchrun --nproc-per-node 2 scripts/train.py RECIPE` beside one process. Scores are IQMs of "
        "returns, of `shakespeare` the loss. Updates of networks "
        "this small cost less than adding up their gradients over processes: ranks pay where an update takes tens of "
        "milliseconds."
    )
    return Comparison("ranks", "two", "Two ranks", "rows", contenders, 1, about=about)


def worker_processes(size: Size) -> list[Comparison]:
    """Return what a step by worker processes costs, and training by them."""
    brief = {"quick": True} if size == "quick" else {}
    sizes = {"LunarLander-v3": 16, "HalfCheetah-v5": 8}
    steps = [
        Contender(name, "costs", {**_table("worker_steps", env_id=name, num_envs=n, **brief), "cores": 0}, 20)
        for name, n in sizes.items()
    ]
    about = (
        "On all cores. A step is that of all the environments, by random actions. gymnasium's AsyncVectorEnv has a "
        "process for each environment, ours as many as are asked for (`env.workers`)."
    )
    workers, overlap = {"env.workers": 2}, {"env.workers": 2, "source.overlap": True}
    ways = {
        "one process": {},
        "2 workers": workers,
        "2 workers, overlap": overlap,
        "2 workers, overlap, in order of arrival": {**overlap, "env.order": "arrival"},
    }

    def training(recipe: str, name: str, frames: int, said: str, **more: Any) -> Comparison:
        contenders = [
            mine(way, recipe, frames, 14, overrides={**more, **overrides}, cores=0) for way, overrides in ways.items()
        ]
        title = f"`{recipe}` with environments in worker processes"
        text = f"On all cores, {sizes[name]} environments of {name}, {said}. `env.order=arrival` waits for nobody."
        return Comparison("workers", recipe, title, "race", contenders, ours=["one process"], about=text)

    return [
        Comparison("workers", "steps", "Steps by worker processes", "rows", steps, 1, about=about),
        training("lunarlander_dqn", "LunarLander-v3", by_size(size, 2_500, 8_000, 50_000), "an update every 2 frames",
                 **{"eval.use": "last"}),
        training("halfcheetah_sac", "HalfCheetah-v5", by_size(size, 1_200, 6_000, 20_000),
                 "an update every 8 frames (one a step)",
                 **{"env.num_envs": 8, "source.updates_per_frame": 0.125, "source.frames_per_iteration": 64}),
    ]  # fmt: skip


def profiles(size: Size) -> Comparison:
    """Return where the time of training goes."""
    quick = size == "quick"
    runs: dict[str, tuple[Any, dict[str, Any], int]] = {
        "cartpole_dqn, compiled": ("cartpole_dqn", COMPILED, 10_000),
        "DQN at the zoo's settings, compiled": (ZOO, COMPILED, 5_000),
        "DQN at CleanRL's settings, compiled": (CLEAN, COMPILED, 20_000),
        "cartpole_pqn": ("cartpole_pqn", EAGER, 32_768),
        "shakespeare": ("shakespeare", EAGER, 600),
    }
    chosen = list(runs)[:: 4 if quick else 1]  # one that acts, one that does not
    contenders = [
        Contender(name, "costs", _table("stages", name=name, config=config, overrides=overrides,
                                        frames=frames // (20 if quick else 1)), 20)
        for name, (config, overrides, frames) in runs.items() if name in chosen
    ]  # fmt: skip
    about = (
        "Shares of the wall-clock time of training, start-up, compiling and the frames before the first updates left "
        "out; of `shakespeare` a frame is a window of 64 tokens. Products of matrices and attention, timed by torch's "
        "profiler, are part of the stages, mostly of updating: they are bound by arithmetic, the rest by loops over "
        "elements and by what it costs to call operations."
    )
    return Comparison("profile", "stages", "Where the time goes", "rows", contenders, 1, about=about)
