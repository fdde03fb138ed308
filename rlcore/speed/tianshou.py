"""Tianshou 2's DQN, by its own trainer and collector on its vector of one environment."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from rlcore.speed.peer import Job, Solved, Watch, main


def measure(job: Job) -> dict[str, Any]:
    """Train and time.

    The job: options (hidden, lr, gamma, batch_size, buffer_size, learning_starts, frames_per_iteration,
    updates_per_frame, target_every (updates), epsilon (start, end, fraction of the frames)), frames, seed.
    """
    import gymnasium as gym
    import numpy as np
    import torch
    from tianshou.algorithm import DQN  # pyright: ignore[reportMissingImports]
    from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy  # pyright: ignore[reportMissingImports]
    from tianshou.algorithm.optim import AdamOptimizerFactory  # pyright: ignore[reportMissingImports]
    from tianshou.data import Collector, CollectStats, VectorReplayBuffer  # pyright: ignore[reportMissingImports]
    from tianshou.env import DummyVectorEnv  # pyright: ignore[reportMissingImports]
    from tianshou.trainer import OffPolicyTrainerParams  # pyright: ignore[reportMissingImports]
    from tianshou.utils.net.common import Net  # pyright: ignore[reportMissingImports]

    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])  # noqa: NPY002 (it draws from the global stream)
    o, watch, starts = job["options"], Watch(job.get("every", 0)), job["options"]["learning_starts"]
    one = gym.make("CartPole-v1")
    envs = DummyVectorEnv([lambda: gym.make("CartPole-v1")])
    envs.seed(job["seed"])
    net = Net(state_shape=one.observation_space.shape, action_shape=2, hidden_sizes=o["hidden"])
    policy = DiscreteQLearningPolicy(
        model=net, action_space=one.action_space, observation_space=one.observation_space, eps_training=1.0
    )
    algorithm = DQN(
        policy=policy,
        optim=AdamOptimizerFactory(lr=o["lr"]),
        gamma=o["gamma"],
        target_update_freq=o["target_every"],
        is_double=False,
        huber_loss_delta=1.0 if o["huber"] else None,
    )
    buffer = VectorReplayBuffer(o["buffer_size"], 1)
    collector = Collector[CollectStats](algorithm, envs, buffer, exploration_noise=True)
    done = [starts]

    def greedy(obs: Any) -> Any:
        with torch.no_grad():
            return net(torch.as_tensor(obs))[0].argmax(1).numpy()

    def before_collecting(epoch: int, step: int) -> None:
        done[0] = starts + step
        start, end, fraction = o["epsilon"]
        policy.set_eps_training(max(end, start + (end - start) * done[0] / (fraction * job["frames"])))
        if watch.look(done[0], greedy):
            raise Solved

    watch.start()
    collector.reset()
    collector.collect(n_step=starts, random=True)
    with suppress(Solved):  # it has no other way to end early
        algorithm.run_training(
            OffPolicyTrainerParams(
                training_collector=collector,
                max_epochs=1,
                epoch_num_steps=job["frames"] - starts,
                collection_step_num_env_steps=o["frames_per_iteration"],
                update_step_num_gradient_steps_per_sample=o["updates_per_frame"],
                batch_size=o["batch_size"],
                training_fn=before_collecting,
                show_progress=False,
                verbose=False,
            )
        )
        done[0] = max(done[0], collector.collect_step)
        watch.look(done[0], greedy)
    return watch.result(done[0], (done[0] - starts) * o["updates_per_frame"], "tianshou")


if __name__ == "__main__":
    main(measure)
