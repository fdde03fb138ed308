"""Stable-Baselines3, on its own vector environment."""

from __future__ import annotations

from typing import Any

from rlcore.speed.peer import Job, Watch, main


def measure(job: Job) -> dict[str, Any]:
    """Train and time. The job: algorithm, env, num_envs, options (a pair ["linear", x] falls to 0), frames, seed."""
    import stable_baselines3 as sb3  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.callbacks import BaseCallback  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.env_util import make_vec_env  # pyright: ignore[reportMissingImports]

    watch = Watch(job.get("every", 0))

    class Look(BaseCallback):
        def _on_training_start(self) -> None:
            watch.start()

        def _on_step(self) -> bool:
            return not watch.look(self.num_timesteps, lambda obs: self.model.predict(obs, deterministic=True)[0])

        def _on_training_end(self) -> None:
            watch.stop()

    options = {name: _schedule(value) for name, value in job["options"].items()}
    env = make_vec_env(job["env"], n_envs=job["num_envs"], seed=job["seed"])
    algorithm = getattr(sb3, job["algorithm"])
    model = algorithm("MlpPolicy", env, seed=job["seed"], device="cpu", **options)
    model.learn(job["frames"], callback=Look())
    updates = model._n_updates * _minibatches(job)
    return watch.result(model.num_timesteps, updates, "stable-baselines3")


def _schedule(value: Any) -> Any:
    if isinstance(value, list) and value[0] == "linear":
        return lambda left: left * value[1]
    return value


def _minibatches(job: Job) -> int:
    """PPO counts epochs."""
    if job["algorithm"] != "PPO":
        return 1
    return job["num_envs"] * job["options"]["n_steps"] // job["options"]["batch_size"]


if __name__ == "__main__":
    main(measure)
