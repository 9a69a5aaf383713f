"""What DataComp's four scales take, computed from rates that are measured here.

    read    N · r / cores            r: CPU seconds to read, decode and scale a pair
    score   N · f · (p + q) / F      f: operations of both towers, p passes of the model, q of the
                                     reference, F: operations a second
    log     N · l                    l: bytes of a pair's scores and canaries
    select  N · s / cores            s: CPU seconds of stage 2 with metadata (metadata.py)

Seconds of CPU are measured, not of the wall, since other work on a machine shows less in them. What
a GPU takes is computed: F is its published peak times an assumed share of it.

Run: python benchmarks/datacomp.py
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import save
from reader import PER_SHARD, Prepare, cpu, generate, ours
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from gradmimic.log import ScoreLog

SCALES = {"small": 12.8e6, "medium": 128e6, "large": 1.28e9, "xlarge": 12.8e9}
MODELS = {"small": "ViT-B/32", "medium": "ViT-B/32", "large": "ViT-B/16", "xlarge": "ViT-L/14"}
TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ViT-B/32": ({"patch_size": 32}, {}),
    "ViT-B/16": ({"patch_size": 16}, {}),
    "ViT-L/14": (
        {"patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096,
         "num_hidden_layers": 24, "num_attention_heads": 16},
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    ),
}  # fmt: skip
PEAK, SHARE = 989e12, 0.3  # of an H100 SXM in bf16 without sparsity, as published; assumed
PASSES = 2  # one of the model, one of the reference for its CLIP score
CANARIES, SCORERS, BATCH = 0.05, ("mimic", "own", "clip"), 256


def clip(name: str) -> Any:
    """Return a CLIP of one of DataComp's sizes."""
    from transformers import CLIPConfig, CLIPModel

    vision, text = TOWERS[name]
    model: Any = CLIPModel(CLIPConfig(vision_config=vision, text_config=text))
    return model.eval()


def embed(model: Any, n: int) -> None:
    """Pass random pairs through both towers."""
    with torch.no_grad():
        model.get_image_features(pixel_values=torch.zeros(n, 3, 224, 224))
        model.get_text_features(input_ids=torch.full((n, 77), 7))


def operations(name: str) -> float:
    """Count the floating-point operations of one pair in both towers; a multiply-add is two."""
    with torch.device("meta"):
        model = clip(name)
        with FlopCounterMode(display=False) as counter:
            embed(model, 1)
    return float(counter.get_total_flops())


def cpu_of_model(name: str, n: int = 32) -> float:
    """Return the CPU seconds of a pair in both towers, in float32 on one thread."""
    torch.set_num_threads(1)
    model = clip(name)
    embed(model, 2)
    start = time.process_time()
    embed(model, n)
    return (time.process_time() - start) / n


def cpu_of_reading(folder: Path) -> float:
    """Return the CPU seconds to read, decode and scale a pair to 224 pixels."""
    paths, _ = generate(folder, 2 * PER_SHARD)
    ours(0, Prepare(224), paths[:1])
    start = cpu()
    ours(0, Prepare(224), paths[1:])
    return (cpu() - start) / PER_SHARD


def bytes_of_log(folder: Path, n: int = 200_000) -> float:
    """Return the bytes of a pair's rows in the log: three scorers, and their canaries."""
    chance = np.random.default_rng(0)
    ids = [chance.bytes(16).hex() for _ in range(n)]
    with ScoreLog(folder) as log:
        for step in range(n // BATCH):
            own = ids[step * BATCH : (step + 1) * BATCH]
            drawn = own[: round(CANARIES * BATCH)]
            losses = chance.gamma(2.0, 1.0, BATCH)
            for scorer in SCORERS:
                weights = chance.dirichlet(np.ones(BATCH))
                scores = chance.normal(size=BATCH)
                log.append(own, scores, weights, losses, epoch=0, step=step, scorer=scorer)
                zeros, kinds = np.zeros(len(drawn)), ["swapped"] * len(drawn)
                log.append(drawn, scores[: len(drawn)], zeros, losses[: len(drawn)], epoch=0,
                           step=step, scorer=scorer, canary=kinds)  # fmt: skip
    return sum(part.stat().st_size for part in folder.glob("*.parquet")) / (n // BATCH * BATCH)


def cpu_of_selecting() -> float:
    """Return the CPU seconds of stage 2 with metadata for a sample, as metadata.py measured."""
    path = Path(__file__).parent / "results" / "metadata.json"
    rows = [row for row in json.loads(path.read_text())["results"] if row["metadata"]]
    return float(rows[-1]["cpu_s"] / rows[-1]["samples"])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        read = cpu_of_reading(Path(folder))
        log = bytes_of_log(Path(folder) / "log")
    counted = {name: operations(name) for name in TOWERS}
    rates = {
        "operations of a pair": counted,
        "CPU seconds, ViT-B/32": cpu_of_model("ViT-B/32"),
        "CPU seconds, reading": read,
        "bytes of the log": log,
        "CPU seconds, selecting": cpu_of_selecting(),
    }
    rows = {}
    table = Table("scale", "pairs", "read, core h", "H100 h", "log, GB", "select, core h")
    for scale, n in SCALES.items():
        gpu = n * PASSES * counted[MODELS[scale]] / (PEAK * SHARE)
        rows[f"{scale}, {MODELS[scale]}"] = own = {
            "pairs": n,
            "read, core hours": n * read / 3600,
            "score, GPU hours (computed)": gpu / 3600,
            "log, GB": n * log / 1e9,
            "select, core hours": n * cpu_of_selecting() / 3600,
        }
        table.add_row(f"{scale}, {MODELS[scale]}", *(f"{value:,.3g}" for value in own.values()))
    Console().print(rates)
    Console().print(table)
    save("datacomp", {"rates": rates, "scales": rows}, "python benchmarks/datacomp.py")


if __name__ == "__main__":
    main()
