"""The most memory that a run took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlcore import peak_memory as module
from rlcore import plain_yaml, runs
from rlcore.peak_memory import peak_memory
from rlcore.report import known

PROBE = """
import torch
from rlcore.peak_memory import peak_memory
def peak():
    return peak_memory("cpu")["peak_memory_mib"]
found = [peak()]
held = bytearray(b"x" * (150 * 2**20)) # two of them for a moment
found.append(peak())
del held
found.append(peak())
print(*found)
"""


def test_the_peak_is_of_the_process_and_stays_when_memory_is_given_back() -> None:
    held = torch.ones(1500 * 2**20 // 4)  # a child's peak must not be its parent's
    assert peak_memory("cpu")["peak_memory_mib"] > held.nbytes / 2**20
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    before, at_most, after = map(float, done.stdout.split())
    assert 20 < before < 1000
    assert at_most - before == pytest.approx(300, abs=20)
    assert at_most <= after < at_most + 1


def test_without_proc_the_peak_is_that_of_getrusage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known_so_far = peak_memory("cpu")["peak_memory_mib"]
    monkeypatch.setattr(module, "_STATUS", tmp_path / "absent")
    monkeypatch.setattr(sys, "platform", "linux")
    counted = peak_memory("cpu")["peak_memory_mib"]  # kibibytes; begins at the parent's, so it may be more
    assert 0.99 * known_so_far < counted < 100 * known_so_far
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory("cpu")["peak_memory_mib"] == pytest.approx(counted / 1024, abs=0.1)  # bytes
    monkeypatch.setattr(module, "resource", None)
    assert peak_memory("cpu") == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_has_a_peak_of_its_own() -> None:
    before = peak_memory("cuda")["peak_device_memory_mib"]
    torch.ones(2**28, device="cuda")  # 1 GiB
    assert peak_memory("cuda")["peak_device_memory_mib"] >= max(before, 1024)


def test_a_run_tells_its_peak_wherever_it_tells_its_time(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert 100 < result["peak_memory_mib"] < 100_000
    assert "peak_device_memory_mib" not in result
    assert f"\n  peak_memory_mib: {result['peak_memory_mib']}\n" in plain_yaml.dump(runs.about(finished))
    facts = dict(known.facts(finished))
    assert facts["Peak memory"] == f"{result['peak_memory_mib']:,.0f} MiB"
    assert "Peak memory of the device" not in facts
