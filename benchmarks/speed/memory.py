"""The memory of a run: its peak, and what becomes of what was freed."""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.subjects import Run

#: Numbers of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed() -> bool:
    """Let the C library keep memory that was freed, as allocators of accelerators do; return whether it can.

    By itself it gives pages back and asks for them again, as chance has it, which takes up to a fifth of a run.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and bool(mallopt(_TRIM_THRESHOLD, -1) and mallopt(_MMAP_MAX, 0))


def peak(run: Run, x: Tensor) -> int:
    """Return the most bytes allocated at a time during one run, beyond those before it."""
    if x.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(x)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        run(x)
    current = most = 0
    results = found.profiler.kineto_results
    assert results is not None
    changes = [event for event in results.events() if event.name() == "[memory]"]
    for event in sorted(changes, key=lambda e: e.start_ns()):
        current += event.nbytes()
        most = max(most, current)
    return most
