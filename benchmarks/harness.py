"""What every benchmark here shares: interleaved timing, the machine, one JSON each."""

import json
from pathlib import Path

from gradmimic.bench.clock import Timing, interleave
from gradmimic.bench.machine import machine

__all__ = ["Timing", "interleave", "machine", "save"]
RESULTS = Path(__file__).parent / "results"


def save(name: str, results: object, command: str) -> Path:
    """Write results with the machine and the command to ``benchmarks/results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"command": command, "machine": machine(), "results": results}
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path
