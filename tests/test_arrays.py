"""Memory that is read here and there; numbers drawn ahead."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from rlcore import guards
from rlcore.arrays import LINE, storage
from rlcore.errors import UserError
from rlcore.prioritized import Masses
from rlcore.seeding import Uniforms, generator

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.bfloat16, torch.float32, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 0, 2), (1001, 3)])
def test_memory_is_zeros_that_begin_a_line(kind: torch.dtype, shape: tuple[int, ...]) -> None:
    x = storage(shape, kind, "cpu")
    assert x.dtype == kind and x.shape == shape and x.is_contiguous()
    assert x.data_ptr() % LINE == 0 or not x.numel()
    assert not x.any()
    x.fill_(1)
    assert x.all()


@pytest.mark.parametrize("count", [10**14, 10**18, 10**20])
def test_too_much_memory_is_told(count: int) -> None:
    with pytest.raises(RuntimeError, match=f"can't allocate memory: could not allocate {8 * count} bytes"):
        storage((count,), torch.float64, "cpu")


def test_too_much_memory_is_a_sentence_wherever_it_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"memory: a tensor of 745,058\.1 GiB does not fit; lower"), guards.memory():
        Masses(10**14)


@pytest.mark.skipif(not PAGES.exists() or os.environ.get("NUMPY_MADVISE_HUGEPAGE") == "0", reason="no large pages")
def test_large_pages_are_asked_for() -> None:
    x = storage((2**23,), torch.uint8, "cpu")
    at = x.data_ptr() + x.nbytes // 2
    regions = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)[1:]
    spans = ((*(int(end, 16) for end in region.split(maxsplit=1)[0].split("-")), region) for region in regions)
    (mine,) = [region for start, end, region in spans if start <= at < end]
    assert "hg" in mine.rpartition("VmFlags:")[2].split()


def test_numbers_drawn_ahead_are_those_of_the_generator() -> None:
    numbers, plain = Uniforms(generator(1, "a")), generator(1, "a")
    block = torch.rand(4096, dtype=torch.float64, generator=plain)
    taken = [torch.from_numpy(numbers.take(count)) for count in (1, 95, 4000)]
    assert torch.equal(torch.cat(taken), block)
    after = torch.rand(5000, dtype=torch.float64, generator=plain)
    assert torch.equal(torch.from_numpy(numbers.take(5000)), after), "more than are drawn ahead"
    rest = torch.rand(4096, dtype=torch.float64, generator=plain)
    assert torch.equal(torch.from_numpy(numbers.take(4090)), rest[:4090])
    last = torch.rand(4096, dtype=torch.float64, generator=plain)
    assert torch.equal(torch.from_numpy(numbers.take(7)), last[:7]), "six were left, seven asked for"


@pytest.mark.parametrize("before", [0, 10, 4096, 5000])
def test_numbers_go_on_where_they_were_saved(before: int) -> None:
    rng = generator(1, "a")
    numbers = Uniforms(rng)
    numbers.take(before)
    state, drawn = numbers.state_dict().clone(), rng.get_state()
    other = generator(2, "b")
    again = Uniforms(other)
    again.take(3)
    other.set_state(drawn)
    again.load_state_dict(state)
    for count in (100, 3000, 2000, 4096, 1):
        assert (numbers.take(count) == again.take(count)).all()
