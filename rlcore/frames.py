"""A replay buffer for stacks of frames that keeps each frame once: for stacks of k about 2k times smaller.

An observation is a stack of the k latest frames along its first axis, oldest first, so an episode of T steps shows
k + T frames in all: those of its first observation (whatever the environment filled it with) and one more a step.
They are stored in this order, one environment's episodes one after another, in a ring of frames of its own; of each
transition is kept only the position p of its newest frame::

    obs = frames p-k+1, ..., p        next_obs = frames p-k+2, ..., p+1

p + 1 is always the true successor, at an episode's end too, and no stack reaches into another episode.

A ring of k + R frames serves R transitions of one episode, and every further episode among them takes k more. There
is room for some; where episodes are so short that more is needed the ring grows, long before anything is overwritten.
How much is needed lies on the device: `FrameBuffer.add` looks at it, and waits, only once in many steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlcore.arrays import storage, tensor
from rlcore.errors import UserError
from rlcore.records import layout, minimum
from rlcore.replay import Reader, ReplayBuffer
from rlcore.tree import leaves, tmap

RARELY = 256  # steps between two looks at what lies on the device, at most


class FrameBuffer(ReplayBuffer):
    """Preallocated memory of the latest ``capacity`` transitions, whose stacked frames are stored once.

    Used exactly like a `ReplayBuffer`; every batch is the same, bit for bit.

    Args:
        capacity: transitions kept.
        num_envs: N.
        example: one step by field, as for `ReplayBuffer`; every leaf of "obs" is (N, stack, ...).
        device: where the storage lives.
        stack: k, frames of an observation.

    Raises:
        UserError: the observations have another number of frames, or as `ReplayBuffer`.
    """

    def __init__(
        self, capacity: int, num_envs: int, example: dict[str, Any], device: torch.device | str = "cpu", stack: int = 4
    ) -> None:
        for x in leaves(example["obs"]):
            if x.shape[1:2] != (stack,):
                raise UserError(
                    f"source.frame_stack: got {stack}, expected 0: observations of shape {tuple(x.shape[1:])} are no "
                    f"stacks of {stack} frames along their first axis"
                )
        self._newest_frame = torch.full((num_envs,), stack - 1, device=device)  # (N,) position, of the next obs
        self._envs = torch.arange(num_envs, device=device)  # (N,)
        super().__init__(capacity, num_envs, example | {"obs": self._newest_frame, "next_obs": ()}, device)
        self._position = super()._reader("obs")
        self.stack = stack
        self._stack = torch.arange(1 - stack, 1, device=device)  # (k,) positions from the newest frame's
        self._fresh = torch.ones(num_envs, dtype=torch.bool, device=device)  # (N,) the next obs starts an episode
        self._wrong = torch.zeros((), dtype=torch.bool, device=device)  # something stored was no stack
        self._most = stack * self.rows  # frames of spare room that are enough for episodes of one step
        self._spare = min(max(2 * stack, self.rows // 20, min(self.rows // 8, 1000)), self._most)
        self._adds, self._look = 0, 1  # steps stored so far, and at which to look next
        self._frames = self._allocate_frames(tmap(lambda x: x[0, 0], example["obs"]))

    @property
    def frame_rows(self) -> int:
        """Frames kept of each environment."""
        return self.rows + self.stack + self._spare

    def add(self, step: dict[str, Any], valid: Tensor | None = None) -> Tensor:
        """Store one step of the N environments; see `ReplayBuffer.add`.

        Raises:
            UserError: observations are no stacks of successive frames (noticed after at most 256 steps), or memory is
                too small for the room that many short episodes need.
        """
        obs, next_obs = step["obs"], step["next_obs"]
        wrong = self._mismatch(obs, next_obs)  # (N,)
        self._wrong |= (wrong if valid is None else wrong & valid).any()
        slot = super().add(step | {"obs": self._newest_frame, "next_obs": ()}, valid)
        at = self._frame_slots(self._newest_frame, self._envs, self._stack)  # (N, k)
        ahead = self._frame_slots(self._newest_frame, self._envs, self._stack[-1:] + 1)  # (N, 1)
        ended = step["terminated"] | step["truncated"]
        advance = 1 + self.stack * ended
        if valid is not None:
            at, ahead = (torch.where(valid[:, None], x, self.frame_rows * self.num_envs) for x in (at, ahead))
            advance, ended = advance * valid, torch.where(valid, ended, self._fresh)
        tmap(lambda into, x: into.index_copy_(0, at.view(-1), x.flatten(0, 1)), self._frames, obs)
        tmap(lambda into, x: into.index_copy_(0, ahead.view(-1), x[:, -1]), self._frames, next_obs)
        self._newest_frame += advance
        self._fresh.copy_(ended)
        self._adds += 1
        if self._adds >= self._look:
            self._inspect()
        return slot

    def extend(self, steps: dict[str, Any]) -> None:
        """Store steps of the N environments, fields (T, N, ...), all valid."""
        for t in range(len(steps["reward"])):
            self.add(tmap(lambda x, t=t: x[t], steps))

    def places(self) -> list[Tensor]:
        """Return the frames, whose rings grow."""
        return [*leaves(self._frames)]

    def cut(self) -> None:
        """End every environment's running episode; see `ReplayBuffer.cut`."""
        super().cut()
        self._newest_frame += self.stack * ~self._fresh  # from behind the running episode's last frame on
        self._fresh.fill_(True)

    def _reader(self, name: str) -> Reader:
        """Return what makes a field's tree of a buffer's records and slots; observations are assembled from frames."""
        if name not in ("obs", "next_obs"):
            return super()._reader(name)
        return partial(FrameBuffer._seen, ahead=name == "next_obs")

    def _seen(self, records: Any, at: Any, ahead: bool) -> Any:
        """Return the stacks that the records' positions, or those one ``ahead``, are the newest frames of."""
        newest = self._position(self, records, at) + ahead  # as at
        stacks = self._stacks(newest.flatten(), tensor(at % self.num_envs).flatten())
        return stacks if at.ndim == 1 else tmap(lambda x: x.view(*at.shape, *x.shape[1:]), stacks)

    def _stacks(self, newest: Tensor, env: Tensor) -> Any:
        """Return the stacks (B, k, ...) of environments ``env`` (B,) with newest frames at positions (B,)."""
        slot = self._frame_slots(newest, env, self._stack)  # (B, k)
        return tmap(lambda x: x.index_select(0, slot.view(-1)).view(*slot.shape, *x.shape[1:]), self._frames)

    def _frame_slots(self, position: Tensor, env: Tensor, offset: Tensor) -> Tensor:
        """Return where the frames at positions (B,) + (j,) of environments (B,) are, (B, j)."""
        return (position[:, None] + offset) % self.frame_rows * self.num_envs + env[:, None]

    def _mismatch(self, obs: Any, next_obs: Any) -> Tensor:
        """Return whether storing frames once would give other observations back than these, (N,) bool."""
        running = ~self._fresh
        wrong = torch.zeros_like(running)
        for x, y, kept in zip(*map(leaves, (obs, next_obs, self._stacks(self._newest_frame, self._envs))), strict=True):
            wrong |= _differ(x, kept) & running
            if self.stack > 1:
                wrong |= _differ(x[:, 1:], y[:, :-1])
        return wrong

    def _inspect(self) -> None:
        """Refuse what is no stack, make room where it gets short, and choose when to look again. Waits."""
        stored = minimum(self._head, self._limit)  # (N,)
        ends = (self._newest, self._slot(self._head - stored, self._env))
        newest, oldest = (self._position(self, self._records.take(at), at) for at in ends)
        size = tensor(stored)
        extra = torch.where(size > 0, newest - oldest - size + 1, 0)  # (N,) k frames per episode but the first
        if bool(self._wrong):
            raise UserError(
                f"source.frame_stack: got {self.stack}, expected 0: the observations are not stacks of successive "
                "frames, oldest first"
            )
        used = int(extra.max())
        if used > self._spare // 2 and self._spare < self._most:
            self._grow(min(2 * self._spare, self._most))
        # A step adds k frames at most to those used.
        safe = RARELY if self._spare == self._most else (self._spare - used) // self.stack
        self._look = self._adds + min(self._adds, safe, RARELY)

    def _grow(self, spare: int) -> None:
        """Move the frames to longer rings."""
        old, rows = self._frames, self.frame_rows
        last = self._newest_frame - self.stack * self._fresh  # (N,) positions written last
        position = last[:, None] + torch.arange(1 - rows, 1, device=self.device)  # (N, rows)
        self._spare = spare
        self._frames = self._allocate_frames(tmap(lambda x: x[0], old))
        for e in range(self.num_envs):  # a copy of one environment's frames at a time
            source, target = (position[e] % length * self.num_envs + e for length in (rows, self.frame_rows))
            tmap(lambda x, into, s=source, t=target: into.index_copy_(0, t, x.index_select(0, s)), old, self._frames)

    def _allocate_frames(self, frame: Any) -> Any:
        """Return room for frames like ``frame``, and one more slot, the last, that takes masked writes."""
        slots = self.frame_rows * self.num_envs + 1
        try:
            return tmap(lambda x: storage((slots, *x.shape), x.dtype, self.device), frame)
        except RuntimeError as error:
            size = f"{slots * sum(x.nbytes for x in leaves(frame)) / 2**30:.1f} GiB on {self.device}"
            raise UserError(f"replay: {slots} frames need {size}, more than there is; lower capacity") from error

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        own = (self._newest_frame, self._stack, self._fresh, self._wrong)
        return super().nbytes + sum(x.nbytes for x in own) + sum(x.nbytes for x in leaves(self._frames))

    def state_dict(self) -> dict[str, Any]:
        """Return numbers, the heads and the written rows of every field and of the frames: views."""
        written = min(int(self._newest_frame.max()) + 1, self.frame_rows) * self.num_envs
        return super().state_dict() | {
            "stack": self.stack,
            "spare": self._spare,
            "adds": self._adds,
            "look": self._look,
            "newest_frame": self._newest_frame,
            "fresh": self._fresh,
            "wrong": self._wrong,
            "frames": tmap(lambda x: x[:written], self._frames),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was called.

        Raises:
            UserError: the state is of a buffer of another kind or size, or of stacks of another number of frames.
        """
        super().load_state_dict(state)
        saved, own = ((at["stack"], layout(at["frames"])) for at in (state, self.state_dict()))
        if saved != own:
            raise UserError(f"replay: the saved buffer has stacks of {saved[0]} frames {saved[1]}; expected {own}")
        self._adds, self._look = state["adds"], state["look"]
        if state["spare"] != self._spare:
            self._spare = state["spare"]
            self._frames = self._allocate_frames(tmap(lambda x: x[0], self._frames))
        self._newest_frame.copy_(state["newest_frame"])
        self._fresh.copy_(state["fresh"])
        self._wrong.copy_(state["wrong"])
        tmap(lambda into, x: into[: len(x)].copy_(x), self._frames, state["frames"])


def _differ(x: Tensor, y: Tensor) -> Tensor:
    """Return whether rows (N, ...) differ anywhere, (N,) bool."""
    return (x != y).view(torch.uint8).flatten(1).amax(1).bool()  # any() takes fifty times as long on a CPU
