"""CleanRL's single files, run as they are from a checkout given by path.

What is timed begins where a script resets its environments and ends where it closes them. Where the rule for
"solved" is asked for, its environments tell the frames, and its network, a global variable, is what is evaluated.
"""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

from rlcore.speed.peer import Job, Solved, Watch, main


def measure(job: Job) -> dict[str, Any]:
    """Train and time. The job: checkout, script, arguments, updates (of a frame), frames, seed."""
    import gymnasium as gym
    import torch

    watch, counted = Watch(job.get("every", 0)), [0]

    class Watched(gym.vector.SyncVectorEnv):
        def reset(self, **given: Any) -> Any:
            watch.start()
            return super().reset(**given)

        def step(self, actions: Any) -> Any:
            stepped = super().step(actions)
            counted[0] += self.num_envs
            if watch.every:
                script = sys._getframe(1).f_globals
                network = script["agent"].actor if "agent" in script else script["q_network"]

                def policy(obs: Any) -> Any:
                    with torch.no_grad():
                        return network(torch.as_tensor(obs)).argmax(1).numpy()

                if watch.look(counted[0], policy):
                    raise Solved
            return stepped

        def close(self, **given: Any) -> None:
            watch.stop()
            super().close(**given)

    gym.vector.SyncVectorEnv = Watched
    checkout = Path(job["checkout"]).resolve()
    script = checkout / "cleanrl" / job["script"]
    sys.path.insert(0, str(checkout))
    given = ["--no-cuda", "--seed", str(job["seed"]), "--total-timesteps", str(job["frames"]), *job["arguments"]]
    sys.argv = [str(script), *given]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where it writes its logs
        try:
            runpy.run_path(str(script), run_name="__main__")
        except Solved:
            watch.stop()
        os.chdir("/")
    return watch.result(counted[0], counted[0] * job["updates"], f"CleanRL (gymnasium {gym.__version__})")


if __name__ == "__main__":
    main(measure)
