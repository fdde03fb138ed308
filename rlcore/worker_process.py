"""What runs in an environment worker, and how workers end: see `rlcore.worker_env`."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlcore.errors import UserError
from rlcore.tree import tmap
from rlcore.types import Step
from rlcore.vector import VectorEnv

Build = Callable[[int, bool], VectorEnv]
PATIENCE = 5.0  # seconds that a worker has to end what it does once the main process closes or is gone
STEP, DONE, ASK, ANSWER, ERROR = b"s", b"d", b"q", b"a", b"e"  # how messages begin


def work(pipe: Any, build: bytes, first: bool, shared: Step, action: Tensor) -> None:
    """Serve the main process until it closes the pipe or ends.

    Args:
        pipe: messages come by it and are answered by it, one by one.
        build: pickled, see `rlcore.worker_env.WorkerEnv`.
        first: whether these environments test what is captured.
        shared: where steps are written, each field (n, ...).
        action: (n, ...), what the next step applies.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a whole group may get them; they are the main process's to answer
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_watch, daemon=True).start()
    torch.set_num_threads(1)
    try:
        env: VectorEnv = pickle.loads(build).fn(len(action), first)
    except Exception as error:
        pipe.send_bytes(_error(error))
        return
    with contextlib.suppress(EOFError, OSError):
        pipe.send_bytes(DONE)
        while True:
            pipe.send_bytes(_answer(env, pipe.recv_bytes(), shared, action))
    env.close()


def _answer(env: VectorEnv, message: bytes, shared: Step, action: Tensor) -> bytes:
    try:
        if message == STEP:
            step = env.step(action)
            parts = step._replace(next_obs=None) if step.next_obs is step.obs else step
            tmap(lambda x, to: None if x is None else to.copy_(x), parts, shared)
            return DONE
        what, arguments = pickle.loads(message[1:])
        return ANSWER + pickle.dumps(_ASKED[what](env, shared, *arguments))
    except Exception as error:
        return _error(error)


def _reset(env: VectorEnv, shared: Step, seeds: list[int] | None, mask: Tensor | None) -> None:
    obs, extras = env.reset(seeds, mask)
    tmap(lambda x, to: to.copy_(x), obs, shared.obs)
    for name, value in extras.items():
        shared.extras[name].copy_(value)


def _capture(env: VectorEnv, shared: Step) -> tuple[list[dict[str, Any]] | None, str | None]:
    return env.capture(), env.why_not_capturable


def _restore(env: VectorEnv, shared: Step, states: list[dict[str, Any]]) -> None:
    env.restore(states)


_ASKED: dict[str, Callable[..., Any]] = {"reset": _reset, "capture": _capture, "restore": _restore}


def _error(error: Exception) -> bytes:
    """Return a message of a sentence, and of a traceback where the error is not the user's."""
    if isinstance(error, UserError):
        return ERROR + pickle.dumps((str(error), ""))
    return ERROR + pickle.dumps((f"{type(error).__name__}: {' '.join(str(error).split())}", traceback.format_exc()))


def _watch() -> None:
    """End this process some time after the main one, whatever the environment is busy with."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    time.sleep(PATIENCE)
    os._exit(1)


def end(pipes: Sequence[Any], processes: Sequence[Any]) -> None:
    """Let workers close their environments and end; kill those that take too long. Runs in the main process."""
    for pipe in pipes:
        # Wakes both ends, another thread that waits for an answer too, which closing would not.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(pipe.fileno())) as both:
            both.shutdown(socket.SHUT_RDWR)
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()
    for pipe in pipes:
        pipe.close()
