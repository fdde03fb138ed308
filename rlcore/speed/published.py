"""Settings as they were published, in each library's own words: the zoo's and CleanRL's, for CartPole."""

from __future__ import annotations

from typing import Any

ZOO_DQN = {
    "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1_000, "gamma": 0.99,
    "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128, "exploration_fraction": 0.16,
    "exploration_final_eps": 0.04, "policy_kwargs": {"net_arch": [256, 256]},
}  # fmt: skip
ZOO_PPO = {
    "n_steps": 32, "batch_size": 256, "n_epochs": 20, "gae_lambda": 0.8, "gamma": 0.98, "ent_coef": 0.0,
    "learning_rate": ["linear", 1e-3], "clip_range": ["linear", 0.2],
}  # fmt: skip
ZOO_SHORT = {
    "hidden": [256, 256], "lr": 2.3e-3, "gamma": 0.99, "batch_size": 64, "buffer_size": 100_000,
    "learning_starts": 1_000, "frames_per_iteration": 256, "updates_per_frame": 0.5, "target_every": 128,
    "huber": True, "epsilon": [1.0, 0.04, 0.16],
}  # fmt: skip
CLEAN_SHORT = {
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


ZOO, CLEAN = _ours_dqn(ZOO_SHORT, 10), _ours_dqn(CLEAN_SHORT, 500)
PPO = _ours_rollout(
    {
        "name": "ppo", "network": {"name": "mlp", "kwargs": {"hidden": [64, 64], "activation": "tanh"}},
        "gamma": 0.99, "lam": 0.95, "clip": 0.2, "value_clip": 0.2, "entropy_coef": 0.01, "value_coef": 0.5,
    },
    {"name": "adam", "eps": 1e-5, "clip": 0.5},
)  # fmt: skip
PQN = _ours_rollout(
    {
        "name": "pqn", "network": {"name": "mlp", "kwargs": {"hidden": [120, 84], "layer_norm": True}},
        "gamma": 0.99, "lam": 0.65, "epsilon": {"kind": "linear", "start": 1.0, "end": 0.05, "fraction": 0.5},
    },
    {"name": "radam", "clip": 10.0},
)  # fmt: skip
SB3_PPO = {
    "n_steps": 128, "batch_size": 128, "n_epochs": 4, "learning_rate": ["linear", 2.5e-4], "gamma": 0.99,
    "gae_lambda": 0.95, "ent_coef": 0.01, "vf_coef": 0.5, "clip_range": 0.2, "clip_range_vf": 0.2,
    "max_grad_norm": 0.5,
}  # fmt: skip
