"""Records: what is put is what is taken; and other devices' code does what a CPU's does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_frames import Stacks, buffers
from test_replay import Environments, draw, example, fields, generator

from rlcore import prioritized, records, replay
from rlcore.frames import FrameBuffer
from rlcore.prioritized import Masses, Prioritized
from rlcore.records import NUMBERS, SMALL, Records, fits
from rlcore.replay import ReplayBuffer
from rlcore.testing.agents import first_difference

MODULES = (prioritized, records, replay)
SHAPES = ((), (1,), (3,), (2, 2), (0,), (5, 1))


def random(shape: tuple[int, ...], kind: torch.dtype, rng: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 2, shape, generator=rng).to(kind)


@pytest.mark.parametrize("numpy", [True, False])
@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.tuples(st.sampled_from(NUMBERS), st.sampled_from(SHAPES)), min_size=1, max_size=6),
    seed=st.integers(0, 10**6),
)
def test_what_was_put_last_is_taken(numpy: bool, parts: list[tuple[torch.dtype, tuple[int, ...]]], seed: int) -> None:
    rng = generator(seed)
    slots, n = 7, 3
    plain = {f"{i}": torch.zeros(slots, *shape, dtype=kind) for i, (kind, shape) in enumerate(parts)}
    with pytest.MonkeyPatch.context() as patch:
        if not numpy:
            patch.setattr(records, "array", lambda x: x)
        kept = Records(slots, plain)
        for _ in range(6):
            slot = torch.randperm(slots, generator=rng)[:n]
            for name, x in plain.items():
                items = random((n, *x.shape[1:]), x.dtype, rng)
                x[slot] = items
                kept.put(slot.numpy() if numpy else slot, name, items)
        index = torch.randint(0, slots, (4, 5), generator=rng)
        taken = kept.take(index.numpy() if numpy else index)
        for name, x in plain.items():
            got = torch.as_tensor(kept.column(taken, name))
            assert got.dtype == x.dtype
            assert torch.equal(got, x[index])
    used = sum(x[0].nbytes for x in plain.values())
    widest = max(x.element_size() for x in plain.values())
    assert max(used, 1) <= kept.data.nbytes // slots < max(used, 1) + widest, "no gaps but at the end"


def test_items_of_another_type_are_refused() -> None:
    kept = Records(4, {"a": torch.zeros(2, 3)})
    with pytest.raises(TypeError, match=r"torch.float64 for a place of torch.float32"):
        kept.put(np.array([0, 1]), "a", torch.zeros(2, 3, dtype=torch.float64))


def test_what_is_large_or_unknown_to_numpy_stays_outside() -> None:
    assert fits(torch.zeros(2, SMALL, dtype=torch.uint8))
    assert not fits(torch.zeros(2, SMALL + 1, dtype=torch.uint8))
    assert not fits(torch.zeros(2, 3, dtype=torch.bfloat16))
    step = example(2) | {"obs": torch.randn(2, 3).bfloat16(), "next_obs": torch.randn(2, 300)}
    buffer = ReplayBuffer(6, 2, step)
    buffer.add(step)
    for name, x in step.items():
        assert first_difference(buffer.select(name, torch.tensor([1, 0])), replay.tmap(lambda x: x.flip(0), x)) is None
    rollout = buffer.sequences(torch.tensor([1, 0, 1]), 2)
    assert torch.equal(rollout.next_obs, step["next_obs"][[1, 0, 1]].expand(2, -1, -1))


def story(buffer: ReplayBuffer, envs: Any, length: int, steps: int) -> list[Any]:
    """Everything that a buffer and priorities give while it fills and turns over."""
    out: list[Any] = []
    chosen, rng = Prioritized(buffer, 0.6, length), generator(1)
    for turn in range(steps):
        step, valid = fields(envs.step()) if isinstance(envs, Environments) else envs.step()
        slot = buffer.add(step, valid if envs.fake else None)
        chosen.add(slot)
        if turn == steps // 2:
            buffer.cut()
        if not len(buffer):
            continue
        index = draw(buffer, 9, rng, length)
        weighed, weight = draw(chosen, 9, rng, 0.4)
        chosen.update(weighed, torch.rand(9, generator=rng))
        out += [slot, index, weighed, weight.double(), *(buffer.gather(index, 0.9, n) for n in (1, 2, 4))]
        out += [buffer.sequences(index, 3), buffer.select("truncated", index), len(buffer), *buffer.turnover(length)]
    saved = {name: value for name, value in chosen.state_dict().items() if name != "weight"}
    return [*out, buffer.state_dict(), saved]


@pytest.mark.parametrize("frames", [False, True], ids=["plain", "frames"])
@pytest.mark.parametrize(
    ("capacity", "fake", "length"), [(24, 0.0, 1), (23, 0.0, 1), (23, 0.3, 1), (24, 0.0, 3), (26, 0.3, 2)]
)
def test_other_devices_code_does_the_same(
    frames: bool, capacity: int, fake: float, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> list[Any]:
        if frames:
            stacks = Stacks(4, 2, 5, 0.3, fake)
            once: FrameBuffer = buffers(stacks, 2, capacity)[1]
            return story(once, stacks, length, 20)
        return story(ReplayBuffer(capacity, 4, example(4)), Environments(4, 5, 0.2, fake), length, 20)

    here = told()
    for module in MODULES:
        monkeypatch.setattr(module, "array", lambda x: x)
    there = told()
    assert len(here) > 100
    for mine, theirs in zip(here, there, strict=True):
        close(mine, theirs)


def close(mine: Any, theirs: Any) -> None:
    if isinstance(mine, torch.Tensor):
        assert mine.dtype == theirs.dtype
        if mine.is_floating_point():
            torch.testing.assert_close(mine, theirs, rtol=3e-7 if mine.dtype == torch.float32 else 1e-12, atol=1e-6)
        else:
            assert torch.equal(mine, theirs)
    elif isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for name in mine:
            close(mine[name], theirs[name])
    elif isinstance(mine, tuple):
        for x, y in zip(mine, theirs, strict=True):
            close(x, y)
    else:
        assert mine == theirs


@pytest.mark.parametrize("n", [1, 1025, 33_000, 1_100_000])
def test_every_depth_of_the_tree_of_masses(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(n)
    plain = np.zeros(n)
    index = rng.integers(0, n, 700)
    value = rng.integers(0, 3, 700).astype(float)  # whole numbers: sums are exact
    np.maximum.at(plain, index, value)
    edges = plain.cumsum()
    uniform = torch.from_numpy(rng.random(500))
    expected = torch.from_numpy(np.searchsorted(edges, uniform.numpy() * edges[-1], side="right"))
    for other in (False, True):
        if other:
            monkeypatch.setattr(prioritized, "array", lambda x: x)
        masses = Masses(n)
        masses.set(torch.from_numpy(index), torch.from_numpy(value))
        slots, mass = masses.draw(uniform)
        assert torch.equal(slots, expected)
        assert torch.equal(mass, torch.from_numpy(plain)[slots])
        *_, top = masses.tensors().values()
        assert len(top) <= prioritized.TOP
        assert top.sum() == plain.sum()


@pytest.mark.parametrize(("steps", "rows", "envs"), [(1, 4, 1), (3, 3, 2), (7, 2, 3), (250, 300, 4)])
def test_what_is_drawn_is_uniform_on_arrays_and_on_tensors(
    steps: int, rows: int, envs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scipy.stats import chisquare

    for on_arrays in (True, False):
        if not on_arrays:
            for module in MODULES:
                monkeypatch.setattr(module, "array", lambda x: x)
        buffer = ReplayBuffer(rows * envs, envs, example(envs))
        for _ in range(steps):
            buffer.add(example(envs))
        size = min(steps, rows) * envs
        drawn = draw(buffer, 50 * size, generator(1))
        assert drawn.dtype == torch.int64
        assert 0 <= int(drawn.min()) <= int(drawn.max()) < size
        assert size == 1 or chisquare(torch.bincount(drawn, minlength=size).numpy()).pvalue > 1e-3
        ends = buffer.choose(torch.tensor([0.0, prioritized.BELOW_ONE], dtype=torch.float64))
        assert ends.tolist() == [0, size - 1], "the first and the last number that there are"
