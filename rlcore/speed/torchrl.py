"""TorchRL's DQN parts (collector, replay buffer, loss, hard target) in the shortest loop of its documentation."""

from __future__ import annotations

from typing import Any

from rlcore.speed.peer import Job, Watch, main


def measure(job: Job) -> dict[str, Any]:
    """Train and time. The job is that of `rlcore.speed.tianshou`."""
    import torch
    from tensordict.nn import TensorDictSequential  # pyright: ignore[reportMissingImports]
    from torchrl.collectors import Collector  # pyright: ignore[reportMissingImports]
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer  # pyright: ignore[reportMissingImports]
    from torchrl.envs import GymEnv  # pyright: ignore[reportMissingImports]
    from torchrl.modules import MLP, EGreedyModule, QValueActor  # pyright: ignore[reportMissingImports]
    from torchrl.objectives import DQNLoss, HardUpdate  # pyright: ignore[reportMissingImports]

    torch.manual_seed(job["seed"])
    o, watch = job["options"], Watch(job.get("every", 0))
    env = GymEnv("CartPole-v1", categorical_action_encoding=True)
    env.set_seed(job["seed"])
    net = MLP(in_features=4, out_features=2, num_cells=o["hidden"], activation_class=torch.nn.ReLU)
    actor = QValueActor(net, in_keys=["observation"], spec=env.action_spec)
    start, end, fraction = o["epsilon"]
    explore = EGreedyModule(
        env.action_spec, eps_init=start, eps_end=end, annealing_num_steps=int(fraction * job["frames"])
    )
    batch = o["frames_per_iteration"]
    watch.start()
    collector = Collector(
        env,
        TensorDictSequential(actor, explore),  # pyright: ignore[reportArgumentType]
        frames_per_batch=batch,
        total_frames=-(-job["frames"] // batch) * batch,
        init_random_frames=o["learning_starts"],
    )
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(o["buffer_size"]), batch_size=o["batch_size"])
    loss = DQNLoss(actor, loss_function="smooth_l1" if o["huber"] else "l2", delay_value=True)
    loss.make_value_estimator(gamma=o["gamma"])
    target = HardUpdate(loss, value_network_update_interval=o["target_every"])
    optimizer = torch.optim.Adam(net.parameters(), lr=o["lr"])
    frames = updates = 0
    for data in collector:
        buffer.extend(data)
        explore.step(data.numel())
        frames += data.numel()
        if frames > o["learning_starts"]:
            for _ in range(round(batch * o["updates_per_frame"])):
                loss(buffer.sample())["loss"].backward()
                optimizer.step()
                optimizer.zero_grad()
                target.step()
                updates += 1
        with torch.no_grad():
            if watch.look(frames, lambda obs: net(torch.as_tensor(obs)).argmax(1).numpy()):
                break
    result = watch.result(frames, updates, "torchrl")
    collector.shutdown()
    return result


if __name__ == "__main__":
    main(measure)
