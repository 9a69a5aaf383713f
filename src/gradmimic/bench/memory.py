"""The most bytes that tensors hold at once while something runs, whatever the allocator keeps.

peak = max_k Σ_{j ≤ k} bytes_j       over allocations (+) and releases (−), in their order
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch


def peak_bytes(step: Callable[[], object]) -> int:
    """Return the peak of one call, above what was held when it began.

    Args:
        step: runs on the CPU; or on a GPU, where the GPU's tensors count.

    Example:
        >>> 4_000_000 <= peak_bytes(lambda: torch.zeros(1_000_000)) < 4_100_000
        True
    """
    gpu = torch.cuda.is_available()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(errors="replace"))["traceEvents"]
    memory = [e for e in events if e["name"] == "[memory]" and e["args"]["Device Type"] == int(gpu)]
    held = peak = 0
    for event in sorted(memory, key=lambda e: e["ts"]):
        held += int(event["args"]["Bytes"])
        peak = max(peak, held)
    return peak
