"""What `benchmark.py speed` measures on a GPU: native CartPole, updates as graphs, nanoGPT's GPU setting.

CartPole is trained in 4,096 environments at once, by PQN (a frame is learnt from once) and by DQN (an item for each
frame).
"""

from __future__ import annotations

from rlcore.speed.peer import Job
from rlcore.speed.settings import Comparison, Contender, Size

_GPU = {"device": "cuda"}
_WAYS = {"ours, eager": {**_GPU, "compile": "off"}, "ours, graphs": {**_GPU, "compile": "on"}}
LARGE = {"PQN": "cartpole_many_pqn", "DQN": "cartpole_many_dqn"}
_UPDATES = {"DQN": "cartpole_dqn", "PPO": "cartpole_ppo", "SAC": "pendulum_sac"}
_TEXT = {
    "agent.network.kwargs.layers": 6, "agent.network.kwargs.heads": 6, "agent.network.kwargs.width": 384,
    "agent.network.kwargs.dropout": 0.2, "env.kwargs.context": 256, "source.batch_size": 64, "optim.precision": "bf16",
}  # fmt: skip
_NANOGPT = {
    "device": "cuda", "compile": "True", "dataset": "shakespeare_char", "eval_iters": 200, "log_interval": 10,
    "block_size": 256, "batch_size": 64, "n_layer": 6, "n_head": 6, "n_embd": 384, "dropout": 0.2,
    "gradient_accumulation_steps": 1, "learning_rate": 1e-3, "min_lr": 1e-4, "beta2": 0.99, "warmup_iters": 100,
}  # fmt: skip
_LOSS = 1.47  # nanoGPT's README, of this setting


def accelerated(size: Size) -> list[Comparison]:
    """Return what is measured where there is a GPU; elsewhere its contenders say that there is none."""
    quick = size == "quick"
    frames = 2**18 if quick else 2**25
    ways = list(_WAYS)

    def ways_of(job: Job, about: float) -> list[Contender]:
        jobs = {way: {**job, "overrides": {**job["overrides"], **how}, "apart": True} for way, how in _WAYS.items()}
        return [Contender(way, "ours", one, about, gpu=True) for way, one in jobs.items()]

    large = {name: {"config": recipe, "overrides": {}, "frames": frames} for name, recipe in LARGE.items()}
    races = [
        Comparison("gpu", f"{name.lower()}_frames", f"{name} on native CartPole, on a GPU", "race",
                   ways_of(job, 60), ours=ways)
        for name, job in large.items()
    ]  # fmt: skip
    solvers = [
        Contender(f"{name}, graphs", "ours",
                  {**job, "overrides": _WAYS["ours, graphs"], "every": 2**18}, 30, gpu=True)
        for name, job in large.items()
    ]  # fmt: skip
    solve = Comparison("gpu", "solve", "Time to solve it there", "solve", solvers, 1 if quick else 10, "s")
    updates = [
        Comparison("gpu", f"{name.lower()}_updates", f"`{recipe}` on a GPU", "race",
                   ways_of({"config": recipe, "overrides": {}, "frames": 3_000 if quick else 20_000}, 60), ours=ways)
        for name, recipe in _UPDATES.items()
    ]  # fmt: skip
    steps = 10 if quick else 5_000
    theirs = {"updates": steps, "look": steps if quick else 250, "tokens": 64 * 256, "settings": _NANOGPT, "text": ""}
    text = [
        *ways_of({"config": "shakespeare", "overrides": _TEXT, "tokens": 256, "text": "", "frames": 64 * steps,
                  "goal": _LOSS, "look": 64 * 250}, 300),
        Contender("nanoGPT train.py", "nanogpt", theirs, 300, needs="nanogpt", gpu=True),
    ]  # fmt: skip
    until = Comparison("gpu", "nanogpt", "nanoGPT's GPU setting", "loss", text, 1, "s")
    return [*races, solve, *updates, until]
