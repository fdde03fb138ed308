"""How much memory a run took at most."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # no POSIX
    resource = None

_MIB = 2**20
_STATUS = Path("/proc/self/status")


def peak_memory(device: str | torch.device) -> dict[str, float]:
    """Return, in MiB, the most memory that this process has held since it began.

    Returns:
        peak_memory_mib: resident, of this process alone (worker processes have their own), where the system tells it;
        peak_device_memory_mib: of tensors on ``device``, where that is a CUDA device.
    """
    resident = _resident()
    found = {} if resident is None else {"peak_memory_mib": resident / _MIB}
    if torch.device(device).type == "cuda":
        found["peak_device_memory_mib"] = torch.cuda.max_memory_allocated(device) / _MIB
    return {name: round(value, 1) for name, value in found.items()}


def _resident() -> int | None:
    """Return the largest resident set in bytes, or None."""
    try:  # a Linux process's ru_maxrss begins at that of the process which started it
        high = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        high = None
    if high:
        return int(high[1]) * 1024
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
