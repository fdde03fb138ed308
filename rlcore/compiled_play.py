"""Acting and stepping compiled into one graph: where environment and agent live on one device, and work on tensors.

One run of the graph is a frame of every environment: choose actions by row t of the noise, step, begin the next episode
where one ended, write all that a source may want into row t of a store, t <- t + 1. The graph reads the agent's own
tensors, writes to the environments' own, and is called with the same ones every time: a frame costs one call, and
on a GPU one launch of a CUDA graph (`rlcore.graphs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rlcore import compiled_graph, graphs
from rlcore.agent import Agent
from rlcore.arrays import on_tensors
from rlcore.compiled_acting import Call, product
from rlcore.native import BatchedEnv
from rlcore.tree import leaves, tmap
from rlcore.types import Act, Step

ROWS = 32  # frames of a store


def compiled_play(agent: Agent, env: Any, obs: Any, state: Any, knobs: Any, noise: Any) -> Play | None:
    """Return what plays the agent in the environment, exploring; None: they are not of the kind, or cannot be compiled.

    They must be an agent without a memory and a `BatchedEnv` of which every row is a step and every action allowed. If
    only compiling fails a note says so. The arguments are those of `Play`.
    """
    if not isinstance(env, BatchedEnv) or not env.always_valid or env.spec.extras & {"action_mask"}:
        return None
    if any(True for _ in leaves(state)):
        return None
    steps = f"steps of {type(env).__name__} run"
    return compiled_graph.attempted(steps, lambda: Play(agent, env, obs, knobs, noise))


class Play:
    """An agent's acts in an environment, as many at once as are asked for.

    Args:
        agent: acts in the mode (training or evaluation) that it is in now.
        env: is stepped.
        obs: tree (N, ...), for shapes.
        knobs: the agent's annealed numbers, in tensors that stay the same.
        noise: of one act, (N, ...) by name, for shapes.
    """

    def __init__(
        self, agent: Agent, env: BatchedEnv, obs: Any, knobs: dict[str, Tensor], noise: dict[str, Tensor]
    ) -> None:
        self.env, device = env, env.device
        with on_tensors():
            twin = env.twin()
            twin.place(*(x.clone() for x in env.placed()))
            with torch.no_grad(), torch.random.fork_rng(devices=[] if device.type == "cpu" else None):
                act = agent.act(obs, (), knobs, noise)  # for the layout of what is stored
            step = twin.step(act.action)
        self.obs = tmap(torch.clone, obs)
        self.noise, self.store = tmap(
            lambda x: torch.zeros(ROWS, *x.shape, dtype=x.dtype, device=device), (noise, (act, step))
        )
        self.row = torch.zeros(1, dtype=torch.int64, device=device)
        compiled_graph.prepare()
        own = dict(compiled_graph.named_tensors(agent))
        call = Call(agent)
        tree = (knobs, self.noise, self.row, self.obs, self.store)

        def frame(*tensors: Tensor) -> list[Tensor]:
            given = iter(tensors)
            named = {f"agent.{name}": next(given) for name in own}
            twin.place(*(next(given) for _ in range(5)))
            knobs, noise, row, obs, store = tmap(lambda _: next(given), tree)
            now = {name: x.index_select(0, row).squeeze(0) for name, x in noise.items()}
            with torch.no_grad():
                act: Any = torch.func.functional_call(call, named, ((obs, (), knobs, now, None),))
            step = twin.step(act.action)
            tmap(lambda into, x: into.index_copy_(0, row, x.unsqueeze(0)), store, (act, step))
            tmap(lambda into, x: into.copy_(x), obs, step.obs)
            row.add_(1)
            return []

        self.tensors = [*(x.detach() for x in own.values()), *env.placed(), *leaves(tree)]
        with torch.inference_mode(False), on_tensors():  # inference mode forbids what tracing does to tensors
            run = compiled_graph.compile_graph(frame, self.tensors, {torch.ops.aten.addmm.default: product})
        self.run = graphs.replayed(run, self.tensors)

    def __call__(self, obs: Any, noise: dict[str, Tensor], steps: int) -> Iterator[tuple[Act, Step]]:
        """Act and step so many times from ``obs`` (N, ...); noise is (steps, N, ...) by name.

        Yields the acts and steps in order of time, in parts (T, N, ...).
        """
        tmap(lambda into, x: into.copy_(x), self.obs, obs)
        for start in range(0, steps, ROWS):
            count = min(ROWS, steps - start)
            for name, x in noise.items():
                self.noise[name][:count].copy_(x[start : start + count])
            self.row.zero_()
            for _ in range(count):
                self.run(self.tensors)
            self.env.written()
            yield tmap(lambda x, n=count: x[:n].clone(), self.store)  # the store is written to again
