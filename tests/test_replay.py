"""The buffer against a list of lists: every transition is tagged (environment, episode, step)."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.utils._python_dispatch import TorchDispatchMode

from rlcore import prioritized, records, replay
from rlcore.arrays import on_tensors
from rlcore.errors import UserError
from rlcore.replay import ReplayBuffer, split
from rlcore.tree import leaves, tmap


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(chosen, count, rng, *more):
    """Choose by a generator's numbers: from a buffer, or by priorities."""
    return chosen.choose(torch.rand(count, dtype=torch.float64, generator=rng), *more)


def sample(buffer, batch_size, rng, gamma, n_step=1, batches=1):
    index = draw(buffer, batch_size * batches, rng)
    return split(buffer.gather(index, gamma, n_step), index, batches)


def example(n):
    flag = torch.zeros(n, dtype=torch.bool)
    tag = torch.zeros(n, 3, dtype=torch.int64)
    return {
        "obs": {"tag": tag, "image": torch.zeros(n, 2, 2, dtype=torch.uint8)},
        "action": torch.zeros(n, dtype=torch.int64),
        "reward": torch.zeros(n),
        "terminated": flag,
        "truncated": flag,
        "next_obs": {"tag": tag, "image": torch.zeros(n, 2, 2, dtype=torch.uint8)},
        "action_mask": torch.zeros(n, 2),
        "next_action_mask": torch.zeros(n, 2),
    }


class Environments:
    """N tagged episodes: obs (env, episode, step), next_obs (env, episode, step + 1), random ends and fake rows."""

    def __init__(self, n, seed, end, fake):
        self.n, self.end, self.fake = n, end, fake
        self.rng = np.random.default_rng(seed)
        self.episode, self.t = [0] * n, [0] * n

    def step(self):
        """Return N rows; a fake row (valid False) stands between episodes and does not advance one."""
        rows = []
        for e in range(self.n):
            tag, reward = (e, self.episode[e], self.t[e]), float(self.rng.normal())
            terminated, truncated = (bool(x) for x in self.rng.random(2) < self.end)
            valid = bool(self.rng.random() >= self.fake)
            if valid and (terminated or truncated):
                self.episode[e], self.t[e] = self.episode[e] + 1, 0
            elif valid:
                self.t[e] += 1
            successor = (*tag[:2], tag[2] + 1)
            rows.append((tag if valid else (-1, -1, -1), reward, terminated, truncated, successor, valid))
        return rows


def fields(rows):
    tag, reward, terminated, truncated, successor, valid = (torch.tensor(column) for column in zip(*rows, strict=True))
    image = tag[:, :1, None].expand(-1, 2, 2).to(torch.uint8)
    step = {
        "obs": {"tag": tag, "image": image},
        "action": tag.sum(1),
        "reward": reward,
        "terminated": terminated,
        "truncated": truncated,
        "next_obs": {"tag": successor, "image": image + 1},
        "action_mask": tag[:, 1:].float(),
        "next_action_mask": successor[:, 1:].float(),
    }
    return step, valid


class Reference:
    """What the buffer should be: one list per environment, cut to its share of the capacity."""

    def __init__(self, capacity, n):
        self.share = [capacity // n + (e < capacity % n) for e in range(n)]
        self.rings = [[] for _ in range(n)]

    def add(self, rows):
        for e, row in enumerate(rows):
            if row[5]:
                self.rings[e].append(row)
                self.rings[e] = self.rings[e][-self.share[e] :]

    def transitions(self, gamma, n_step):
        """Return {tag: (reward, discount, successor)} of all stored transitions."""
        out = {}
        for ring in self.rings:
            for start, first in enumerate(ring):
                total, steps = 0.0, 0
                for row in ring[start : start + n_step]:
                    total += gamma**steps * row[1]
                    steps += 1
                    if row[2] or row[3]:
                        break
                out[first[0]] = (total, 0.0 if row[2] else gamma**steps, row[4])
        return out


def check(buffer, reference, gamma, n_step):
    """Every stored transition is drawn, nothing else is, and each is what the reference says."""
    expected = reference.transitions(gamma, n_step)
    assert len(buffer) == len(expected)
    if not expected:
        return
    count = 60 * len(expected)  # misses one with probability below 1e-20
    [(data, _)] = sample(buffer, count, generator(), gamma, n_step)
    seen = set()
    for i, tag in enumerate(map(tuple, data.obs["tag"].tolist())):
        assert tag in expected, f"drew {tag}, which is not stored"
        seen.add(tag)
        reward, discount, successor = expected[tag]
        assert float(data.reward[i]) == pytest.approx(reward, rel=1e-5, abs=1e-5)
        assert float(data.discount[i]) == pytest.approx(discount, rel=1e-6)
        assert tuple(data.next_obs["tag"][i].tolist()) == successor
        assert int(data.action[i]) == sum(tag)
        assert data.obs["image"][i].tolist() == [[tag[0]] * 2] * 2
        assert data.extras["action_mask"][i].tolist() == list(tag[1:])
        assert data.extras["next_action_mask"][i].tolist() == list(successor[1:])
    assert seen == set(expected)


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 4),
    spare=st.integers(0, 17),
    steps=st.integers(0, 25),
    n_step=st.integers(1, 6),
    end=st.sampled_from([0.0, 0.1, 0.4]),
    fake=st.sampled_from([0.0, 0.2, 0.7]),
    masked=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_matches_the_list_of_lists(n, spare, steps, n_step, end, fake, masked, seed):
    envs = Environments(n, seed, end, fake if masked else 0.0)
    buffer, reference = ReplayBuffer(n + spare, n, example(n)), Reference(n + spare, n)
    for _ in range(steps):
        rows = envs.step()
        reference.add(rows)
        step, valid = fields(rows)
        buffer.add(step, valid if masked else None)
    check(buffer, reference, 0.9, n_step)


@pytest.mark.parametrize("n_step", [1, 3])
def test_every_discount_has_its_own_powers(n_step):
    buffer, _ = filled(12, 2, 6, end=0.0)
    index = torch.arange(4)
    first, other, again = (buffer.gather(index, gamma, n_step) for gamma in (0.9, 0.5, 0.9))
    assert torch.allclose(first.discount, torch.tensor(0.9**n_step))
    assert torch.allclose(other.discount, torch.tensor(0.5**n_step))
    assert torch.equal(first.discount, again.discount)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["record", "large"])
def test_steps_stored_at_once_may_be_empty_and_must_have_their_shape(kind):
    step = example(2) | {"obs": torch.zeros(2, 0, dtype=kind), "next_obs": torch.zeros(2, 3, 0, dtype=kind)}
    steps = tmap(lambda x: x.expand(4, *x.shape), step)
    buffer = ReplayBuffer(10, 2, step)
    buffer.extend(steps)
    assert len(buffer) == 8
    assert buffer.gather(torch.arange(8), 0.9).next_obs.shape == (8, 3, 0)
    buffer = ReplayBuffer(10, 2, example(2) | {"obs": torch.zeros(2, 3, 5, dtype=kind)})
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        buffer.add(example(2) | {"obs": torch.zeros(2, 5, 3, dtype=kind)})
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        buffer.add(example(2) | {"obs": torch.zeros(4, 3, 5, dtype=kind)})
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        buffer.add(example(2) | {"obs": torch.zeros(2, 3, 5, dtype=kind), "reward": torch.zeros(2, 2)})


def filled(capacity, n, steps, fake=0.0, end=0.2, seed=0):
    envs = Environments(n, seed, end, fake)
    buffer = ReplayBuffer(capacity, n, example(n))
    for _ in range(steps):
        step, valid = fields(envs.step())
        buffer.add(step, valid if fake else None)
    return buffer, envs


def one_env(rewards, ends, capacity):
    """Steps of one environment, whose observation is its step number from 0; ends: '.', 't' or 'c' (cut) a step."""
    flag = torch.zeros(1, dtype=torch.bool)
    keys = ("obs", "action", "reward", "next_obs")
    buffer = ReplayBuffer(capacity, 1, {**{k: torch.zeros(1) for k in keys}, "terminated": flag, "truncated": flag})
    for t, (reward, end) in enumerate(zip(rewards, ends, strict=True)):
        values = {"obs": t, "action": t, "reward": reward, "next_obs": t + 1}
        step = {k: torch.tensor([float(v)]) for k, v in values.items()}
        buffer.add(step | {"terminated": torch.tensor([end == "t"]), "truncated": torch.tensor([end == "c"])})
    return buffer


def test_n_step_worked_by_hand():
    buffer = one_env([1, 2, 4, 8, 16, 32, 64], "..t.c..", capacity=7)
    data = buffer.gather(torch.arange(7), gamma=0.5, n_step=3)
    assert data.reward.tolist() == [1 + 1 + 1, 2 + 2, 4, 8 + 8, 16, 32 + 32, 64]
    assert data.discount.tolist() == [0, 0, 0, 0.25, 0.5, 0.25, 0.5]
    assert data.next_obs.tolist() == [3, 3, 3, 5, 5, 7, 7]
    data = buffer.gather(torch.arange(7), gamma=0.5)
    assert data.reward.tolist() == [1, 2, 4, 8, 16, 32, 64]
    assert data.discount.tolist() == [0.5, 0.5, 0, 0.5, 0.5, 0.5, 0.5]
    assert data.next_obs.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_the_write_head_is_not_crossed():
    buffer = one_env([1, 2, 4, 8, 16], ".....", capacity=4)  # slot 0 holds the newest, slot 1 the oldest
    data = buffer.gather(torch.arange(4), gamma=1.0, n_step=4)
    assert data.obs.tolist() == [4, 1, 2, 3]
    assert data.reward.tolist() == [16, 2 + 4 + 8 + 16, 4 + 8 + 16, 8 + 16]
    assert data.next_obs.tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize("image", [(2, 2), (20, 20)])  # in the records, and apart
@pytest.mark.parametrize(("capacity", "n"), [(21, 3), (22, 3), (4, 4), (7, 1)])
@pytest.mark.parametrize("counts", [(5, 5, 5, 5), (2, 1, 7, 3, 4), (9, 9), (2, 0, 3, 4)])  # 0: one with a row masked
@pytest.mark.parametrize("anywhere", [False, True])  # True: as where there are no arrays
def test_several_steps_at_once_are_stored_as_one_by_one(image, capacity, n, counts, anywhere):
    with on_tensors() if anywhere else nullcontext():
        stored_alike(image, capacity, n, counts)


def stored_alike(image, capacity, n, counts):
    def step(seed):
        rng, flags = generator(seed), torch.rand(2, n, generator=generator(seed)) < 0.3
        pictures = torch.randint(0, 256, (2, n, *image), dtype=torch.uint8, generator=rng)
        tags = torch.randint(0, 99, (2, n, 3), generator=rng)
        first, then = ({"tag": t, "image": x} for t, x in zip(tags, pictures, strict=True))
        numbers = {"action": tags[0, :, 0], "reward": torch.rand(n, generator=rng)}
        return {"obs": first, **numbers, "terminated": flags[0], "truncated": flags[1], "next_obs": then}

    one, many = (ReplayBuffer(capacity, n, step(0)) for _ in range(2))
    at = 0
    for count in counts:
        steps = [step(at + i) for i in range(count)]
        at += count
        if count:
            many.extend(tmap(lambda *x: torch.stack(x), *steps))
        for single in steps:
            one.add(single)
        if not count:
            for buffer in (one, many):
                buffer.add(step(99), torch.arange(n) > 0)
        saved = [*leaves(tuple(one.state_dict().values()))], [*leaves(tuple(many.state_dict().values()))]
        for x, y in zip(*saved, strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
    index = draw(one, 50, generator())
    for x, y in zip(leaves(one.gather(index, 0.9, 3)), leaves(many.gather(index, 0.9, 3)), strict=True):
        assert torch.equal(x, y)


def test_cut_ends_the_running_episodes_only():
    buffer = one_env([1, 2, 4], "...", capacity=4)
    buffer.cut()
    step = {k: torch.tensor([9.0]) for k in ("obs", "action", "reward", "next_obs")}
    flag = torch.tensor([False])
    buffer.add(step | {"terminated": flag, "truncated": flag})
    data = buffer.gather(torch.arange(4), gamma=0.5, n_step=3)
    assert data.reward.tolist() == [1 + 1 + 1, 2 + 2, 4, 9]
    assert data.discount.tolist() == [0.125, 0.25, 0.5, 0.5]
    empty = one_env([], "", capacity=4)
    empty.cut()  # nothing stored: nothing to end
    assert len(empty) == 0


@pytest.mark.parametrize(
    ("capacity", "n", "steps", "fake"),
    [(24, 4, 3, 0.0), (24, 4, 40, 0.0), (23, 4, 40, 0.0), (23, 4, 4, 0.0), (40, 5, 9, 0.5), (23, 4, 40, 0.5)],
    ids=["not full", "full", "ragged full", "ragged not full", "unequal heads", "unequal ragged full"],
)
def test_sampling_is_uniform(capacity, n, steps, fake):
    buffer, _ = filled(capacity, n, steps, fake)
    draws = 2000 * len(buffer)
    [(data, index)] = sample(buffer, draws, generator(1), gamma=0.9)
    tags, counts = torch.unique(data.obs["tag"], dim=0, return_counts=True)
    assert len(tags) == len(buffer) == len(index.unique())
    assert chisquare(counts.numpy()).pvalue > 1e-3
    lag = torch.unique(index[1:] * 1000 + index[:-1], return_counts=True)[1]  # consecutive draws are independent
    assert len(lag) == len(buffer) ** 2
    assert chisquare(lag.numpy()).pvalue > 1e-3


def flat(batches):
    return [x for data, index in batches for x in (*data.obs.values(), data.reward, data.discount, index)]


@pytest.mark.parametrize(
    ("capacity", "steps", "fake"), [(24, 3, 0.0), (24, 9, 0.0), (23, 13, 0.0), (24, 12, 0.4), (23, 0, 0.0)]
)
def test_a_restored_buffer_goes_on_bit_identically(capacity, steps, fake):
    buffer, envs = filled(capacity, 4, steps, fake)
    state = copy.deepcopy(buffer.state_dict())
    rows = min(steps if not fake else int(state["head"].max()), 6)
    assert len(state["records"]) == 4 * rows  # written rows only
    restored = ReplayBuffer(capacity, 4, example(4))
    restored.load_state_dict(state)
    assert len(restored) == len(buffer)
    for turn in range(15):
        if turn or not steps:
            step, valid = fields(envs.step())
            for each in (buffer, restored):
                each.add(step, valid if fake else None)
        mine, theirs = (flat(sample(each, 32, generator(3), 0.9, 3, batches=2)) for each in (buffer, restored))
        assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))


def test_state_of_another_buffer_is_refused():
    state = filled(24, 4, 3)[0].state_dict()
    for capacity, n, part in ((25, 4, "capacity 24; expected 25"), (24, 3, "num_envs 4; expected 3")):
        with pytest.raises(UserError, match=part):
            ReplayBuffer(capacity, n, example(n)).load_state_dict(state)
    other = example(4) | {"reward": torch.zeros(4, dtype=torch.float64)}
    with pytest.raises(UserError, match="float64"):
        ReplayBuffer(24, 4, other).load_state_dict(state)


@pytest.mark.parametrize("n_step", [1, 3])
def test_several_batches_are_one_draw_cut_up_and_alias_nothing(n_step):
    buffer, envs = filled(24, 4, 9)
    parts = sample(buffer, 8, generator(), 0.9, n_step, batches=3)
    [whole] = sample(buffer, 24, generator(), 0.9, n_step)
    assert len(parts) == 3
    for part, whole_field in zip(zip(*map(flat, [[p] for p in parts]), strict=True), flat([whole]), strict=True):
        assert torch.equal(torch.cat(part), whole_field)
    before = copy.deepcopy(flat(parts))
    for _ in range(12):  # overwrites every row
        buffer.add(fields(envs.step())[0])
    sample(buffer, 8, generator(5), 0.9, n_step, batches=3)
    assert all(torch.equal(x, y) for x, y in zip(before, flat(parts), strict=True))


@pytest.fixture
def tensors_only(monkeypatch):
    """The code that other devices than a CPU run."""
    for module in (replay, records, prioritized):
        monkeypatch.setattr(module, "array", lambda x: x)


class NoSync(TorchDispatchMode):
    """Refuses what makes the host wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "masked_select", "unique", "equal"}, name
        indices = args[1] if name == "index" else ()
        assert all(i is None or i.dtype is not torch.bool for i in indices), "indexing with a boolean mask"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fake", [0.0, 0.5])
def test_nothing_waits_for_the_device(fake, tensors_only):
    buffer, envs = filled(24, 4, 9, fake)
    step, valid = fields(envs.step())
    sample(buffer, 8, generator(), 0.9)  # sees once that something is stored
    with NoSync():
        buffer.add(step, valid if fake else None)
        sample(buffer, 8, generator(), 0.9, 3, batches=2)
        buffer.cut()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoSync():
        len(buffer)


@pytest.mark.parametrize(
    "obs",
    [
        torch.rand(2, 3, 4, 5),
        torch.randint(0, 255, (2, 8, 8), dtype=torch.uint8),
        torch.randint(0, 9, (2,)),
        (torch.rand(2, 1, dtype=torch.float64), {"b": torch.rand(2, 3) > 0.5, "h": torch.rand(2).half()}),
    ],
    ids=["float", "image", "discrete", "tree"],
)
def test_any_tree_shape_and_dtype(obs):
    step = {**example(2), "obs": obs, "next_obs": obs, "action": torch.rand(2, 6)}
    buffer = ReplayBuffer(5, 2, step)
    buffer.add(step)
    data = buffer.gather(torch.tensor([1, 0]), gamma=0.9, n_step=2)
    for mine, theirs in ((data.obs, obs), (data.next_obs, obs), (data.action, step["action"])):
        for x, y in zip(leaves(mine), leaves(theirs), strict=True):
            assert x.dtype == y.dtype
            assert torch.equal(x, y.flip(0))


def test_memory_is_the_arrays():
    buffer = ReplayBuffer(10_001, 64, example(64))
    per_item = sum(x[0].nbytes for v in example(64).values() for x in (v.values() if isinstance(v, dict) else [v]))
    assert 10_001 * per_item <= buffer.nbytes <= 1.1 * 10_001 * per_item


def test_bad_input_is_one_clear_sentence():
    with pytest.raises(UserError, match="capacity is 3; expected at least num_envs = 4"):
        ReplayBuffer(3, 4, example(4))
    lacking = example(4)
    del lacking["truncated"]
    with pytest.raises(UserError, match="lacks 'truncated'"):
        ReplayBuffer(8, 4, lacking)
    with pytest.raises(UserError, match=r"'reward' has shape \(3,\); expected \(4, ...\)"):
        ReplayBuffer(8, 4, example(4) | {"reward": torch.zeros(3)})
    with pytest.raises(UserError, match="GiB on cpu"):
        ReplayBuffer(10**15, 4, example(4))
    with pytest.raises(UserError, match="empty buffer"):
        ReplayBuffer(8, 4, example(4)).check_stored()


def test_rows_that_are_all_invalid_leave_the_buffer_empty():
    buffer, rows = ReplayBuffer(8, 4, example(4)), example(4)
    buffer.add(rows, torch.zeros(4, dtype=torch.bool))
    with pytest.raises(UserError, match="empty buffer"):
        buffer.check_stored()
    buffer.add(rows, torch.tensor([False, True, False, False]))
    ((_, index),) = sample(buffer, 2, generator(), 0.9)
    assert index.tolist() == [1, 1]
