"""Environments stepped by worker processes over shared memory.

Worker w of W steps the environments [N w / W, N (w + 1) / W) exactly as one process would step all N: the same seeds,
the same order, the same bits. Actions, observations, rewards and flags travel through memory that all share; a step
costs one byte to each worker and one back. Everything rarer (resets, captures) is pickled, but never leaves these
processes.

Workers are forked from a clean server process, which has no threads, where the system can do that, else spawned. They
leave Ctrl-C and SIGTERM to the main process and end when it does, whatever ends it.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.util
import os
import pickle
import signal
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, cast

import torch
from gymnasium import spaces
from gymnasium.vector.utils import CloudpickleWrapper
from torch import Tensor
from torch.multiprocessing import get_context

from rlcore.config import Order
from rlcore.errors import UserError
from rlcore.native import check_states, seed_list
from rlcore.tree import tmap
from rlcore.types import Step
from rlcore.vector import VectorEnv
from rlcore.worker_process import ANSWER, ASK, ERROR, PATIENCE, STEP, Build, end, work


class WorkerEnv(VectorEnv):
    """N environments in W processes.

    ``step`` may be cut in two: between `send` and `receive` the caller has time for other work.

    Args:
        build: called in each worker as ``build(n, first)``: makes n environments on the CPU; ``first``: whether they
            are those that test what is captured. It is also called here once, for the spaces.
        num_envs: N.
        workers: W, at most N.
        device: where observations go.
        order: "fixed": `receive` waits for all. "arrival": it waits for whichever worker is ready first; rows of the
            others are not `valid` and show again what they showed last, and `send` leaves them alone. Faster, but
            no two runs are alike.

    Raises:
        UserError: W is above N, or ``build`` raises it.
    """

    batched: ClassVar[bool] = False

    def __init__(
        self, build: Build, num_envs: int, workers: int, device: torch.device | str = "cpu", order: Order = "fixed"
    ) -> None:
        if not 1 <= workers <= num_envs:
            raise UserError(f"env.workers: got {workers}, expected at most the {num_envs} environments")
        self._one = one = build(1, False)
        obs, extras = one.reset(0)
        self.num_envs, self.device, self.split, self.order = num_envs, torch.device(device), one.split, order
        self.spec, self.autoreset, self.has_goals = one.spec, one.autoreset, one.has_goals
        self.always_valid = one.always_valid and order == "fixed"
        self.why_not_capturable = one.why_not_capturable
        self._rows = [slice(num_envs * w // workers, num_envs * (w + 1) // workers) for w in range(workers)]
        flag = torch.zeros(1, dtype=torch.bool)
        told = {name: extras.get("action_mask", flag) if "mask" in name else flag for name in one.spec.extras}
        like = (Step(obs, torch.zeros(1), flag, flag, obs, flag, told), _some_action(one.spec.action_space))
        self._shared, self._action = tmap(lambda x: x.new_zeros(num_envs, *x.shape[1:]).share_memory_(), like)
        self._last = tmap(torch.clone, self._shared)  # in "arrival" order: what `receive` told last
        self._busy = [False] * workers
        self.arrived = torch.ones(num_envs, dtype=torch.bool)  # rows of which the last `receive` told something new
        self._start(build)
        if not self.has_goals:
            one.close()

    def _start(self, build: Build) -> None:
        context: Any = get_context("forkserver" if hasattr(os, "fork") else "spawn")
        if multiprocessing.forkserver._forkserver._preload_modules == ["__main__"]:  # pyright: ignore
            context.set_forkserver_preload(["rlcore.make"])  # unless someone has chosen already
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        # Also called where nobody calls `close`: when this object is forgotten, or the program ends.
        self._end = multiprocessing.util.Finalize(self, end, (self._pipes, self._processes), exitpriority=10)
        pickled = pickle.dumps(CloudpickleWrapper(cast(Any, build)))
        for w, rows in enumerate(self._rows):
            pipe, theirs = context.Pipe()
            mine = tmap(lambda x, rows=rows: x[rows], (self._shared, self._action))
            process = context.Process(
                target=work, args=(theirs, pickled, w == 0, *mine), name=f"environment worker {w}"
            )
            process.start()
            theirs.close()
            self._pipes.append(pipe)
            self._processes.append(process)
        self._answers(range(len(self._rows)))

    def reset(
        self, seed: int | Sequence[int] | None = None, mask: Tensor | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Start new episodes; see `VectorEnv.reset`. A step that nobody has received is forgotten."""
        self._drain()
        seeds = None if seed is None else seed_list(seed, self.num_envs)
        flags = None if mask is None else mask.cpu()
        self._ask("reset", [(seeds and seeds[rows], None if flags is None else flags[rows]) for rows in self._rows])
        self._last = tmap(torch.clone, self._shared)
        extras = {name: self._own(x) for name, x in self._shared.extras.items() if name == "action_mask"}
        return tmap(self._own, self._shared.obs), extras

    def step(self, action: Tensor) -> Step:
        """Apply actions (N, ...) as the agent's action space has them, and return what happened."""
        self.send(action)
        return self.receive()

    def send(self, action: Tensor) -> None:
        """Let the workers that are not at work, in "fixed" order all of them, begin a step."""
        free = [w for w, at_work in enumerate(self._busy) if not at_work]
        if len(free) == len(self._busy):
            self._action.copy_(action)
        else:
            for w in free:
                self._action[self._rows[w]] = action[self._rows[w]]
        for w in free:
            self._put(w, STEP)
            self._busy[w] = True

    def receive(self, every: bool = False) -> Step:
        """Wait for all workers, in "arrival" order for one at least unless ``every``, and return what happened."""
        self.arrived.zero_()
        ready = self._ready(every)
        self._answers(ready)
        for w in ready:
            self.arrived[self._rows[w]] = True
        told = self._shared
        if self.order == "arrival":  # rows of workers at work may be half written
            told = self._last = tmap(lambda x, old: torch.where(_like(self.arrived, x), x, old), told, self._last)
            reward = torch.where(self.arrived, told.reward, 0.0)
            told = told._replace(reward=reward, valid=told.valid & self.arrived)
            told = told._replace(terminated=told.terminated & told.valid, truncated=told.truncated & told.valid)
        ended = told.terminated | told.truncated
        step = tmap(self._own, told._replace(next_obs=None))
        final = None
        if self.autoreset == "same_step" and bool(ended.any()):
            final = tmap(lambda x, y: self._own(torch.where(_like(ended, x), x, y)), told.next_obs, told.obs)
        return step._replace(next_obs=step.obs if final is None else final)

    def _own(self, x: Tensor) -> Tensor:
        return x.to(self.device, copy=True)

    def _ready(self, every: bool) -> list[int]:
        busy = [w for w, at_work in enumerate(self._busy) if at_work]
        if self.order == "fixed" or every:
            return busy
        ready = multiprocessing.connection.wait([self._pipes[w] for w in busy])
        return [w for w in busy if self._pipes[w] in ready]

    def _drain(self) -> None:
        """Wait for steps under way, and forget them whatever came of them."""
        for w, at_work in enumerate(self._busy):
            if at_work:
                self._get(w)

    def _ask(self, what: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Have all workers do something at once, and return their answers."""
        for w, given in enumerate(arguments):
            self._put(w, ASK + pickle.dumps((what, given)))
        return self._answers(range(len(arguments)))

    def _put(self, w: int, message: bytes) -> None:
        try:
            self._pipes[w].send_bytes(message)
        except OSError:
            raise self._gone(w) from None

    def _get(self, w: int) -> bytes:
        try:
            message = self._pipes[w].recv_bytes()
        except (EOFError, OSError):
            raise self._gone(w) from None
        self._busy[w] = False
        return message

    def _answers(self, workers: Iterable[int]) -> list[Any]:
        """Wait for all these, then return their answers or raise the first error that they tell of."""
        messages = {w: self._get(w) for w in workers}
        for w, message in messages.items():
            if message[:1] == ERROR:
                sentence, trace = pickle.loads(message[1:])
                if not trace:
                    raise UserError(sentence)
                raise UserError(f"{self._name(w)}: {sentence}") from RuntimeError(trace)
        return [pickle.loads(message[1:]) if message[:1] == ANSWER else None for message in messages.values()]

    def _gone(self, w: int) -> UserError:
        if not self._end.still_active():
            return UserError(f"{self._name(w)}: the environments are closed; expected steps before that only")
        process = self._processes[w]
        process.join(PATIENCE)
        code = process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with code {code}"
        return UserError(f"{self._name(w)} {how}; expected it to live as long as the run, which can be resumed")

    def _name(self, w: int) -> str:
        return f"environment worker {w} (environments {self._rows[w].start} to {self._rows[w].stop - 1})"

    def compute_reward(self, achieved: Tensor, desired: Tensor) -> Tensor:
        """Return the environment's own rewards (B,) float32 of steps that achieved goals (B, ...); see `VectorEnv`."""
        return self._one.compute_reward(achieved, desired).to(self.device)

    def compute_terminated(self, achieved: Tensor, desired: Tensor) -> Tensor | None:
        """Return whether the environment says that such steps end episodes, (B,) bool; None: it does not say."""
        ends = self._one.compute_terminated(achieved, desired)
        return None if ends is None else ends.to(self.device)

    def capture(self) -> list[dict[str, Any]] | None:
        """Return one state per environment, or None and set ``why_not_capturable``; see `VectorEnv.capture`.

        Every step must have been received.
        """
        assert not any(self._busy), "a step is under way"
        if self.why_not_capturable is not None:
            return None
        states, whys = zip(*self._ask("capture", [()] * len(self._rows)), strict=True)
        self.why_not_capturable = next(filter(None, whys), None)
        if self.why_not_capturable is not None:
            return None
        states = [state for part in states for state in part]
        if self.order == "fixed":
            return states
        last = self._last.obs, self._last.extras
        return [{"env": state, "last": tmap(lambda x, i=i: x[i].clone(), last)} for i, state in enumerate(states)]

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Continue exactly where `capture` was called.

        Raises:
            UserError: the states are those of other environments.
        """
        check_states(states, self.num_envs)
        self._drain()
        inner = states if self.order == "fixed" else [state["env"] for state in states]
        self._ask("restore", [(inner[rows],) for rows in self._rows])
        if self.order == "arrival":
            last = tmap(lambda *rows: torch.stack(rows), *[state["last"] for state in states])
            self._last = self._last._replace(obs=last[0], extras=last[1])

    def close(self) -> None:
        """Close the environments and end their processes, whatever state these are in."""
        self._end()
        if self.has_goals:
            self._one.close()


def _some_action(space: spaces.Space[Any]) -> Tensor:
    """Return an action (1, ...) of a type that holds every action exactly: they are clipped and cast by the workers."""
    dtype = torch.float64 if isinstance(space, spaces.Box) else torch.int64
    return torch.zeros((1, *(space.shape or ())), dtype=dtype)


def _like(flags: Tensor, x: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (x.dim() - 1))
