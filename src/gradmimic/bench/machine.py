"""The versions and the hardware, without which a figure cannot be compared."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from gradmimic.log import library_versions


def machine() -> dict[str, Any]:
    """Describe versions and hardware, as JSON can hold them.

    Example:
        >>> sorted(machine())[:3]
        ['accelerator', 'cores', 'processor']
    """
    return {
        "versions": library_versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    """Return the processor's name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
