"""Native batched environments and one-step tasks. Importing this package makes them known to gymnasium.

    import envs
    gymnasium.make("rlcore/CartPole-v1")

No torch is imported until an environment is built.
"""

import gymnasium as _gym

_IDS = {  # gymnasium's id -> the name registered with rlcore
    "rlcore/CartPole-v1": "CartPole-v1",
    "rlcore/Acrobot-v1": "Acrobot-v1",
    "rlcore/MountainCar-v0": "MountainCar-v0",
    "rlcore/Pendulum-v1": "Pendulum-v1",
    "rlcore/CartPolePositions-v1": "CartPolePositions-v1",
    "rlcore/PixelBreakout-v0": "PixelBreakout-v0",
    "rlcore/BitFlip-v0": "BitFlip",
    "rlcore/Tabular-v0": "tabular",
    "rlcore/Line-v0": "line",
}

for _id, _name in _IDS.items():
    _gym.register(
        _id,
        entry_point="rlcore.as_gym:GymEnv",
        vector_entry_point="rlcore.as_gym:GymVectorEnv",
        kwargs={"name": _name},
    )
