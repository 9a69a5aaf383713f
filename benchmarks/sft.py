"""Swapped responses, found by a tiny decoder from scratch: mimic scores, perplexity, random.

999 instructions in Alpaca's form (not part of this repository): 500 trusted ones teach the
reference, 100 say when it has learned enough, and of the other 399 the responses of 30 % are
exchanged among each other. Two-layer Llamas, a tokenizer of 2,000 pieces. Every response is judged
behind its prompt, and by what it gains there over standing alone.

Run: python benchmarks/sft.py --seeds 3
     python benchmarks/sft.py --again               the tables of what is saved
     python benchmarks/sft.py --first-seed 100      for trials; nothing is saved
"""

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from harness import RESULTS, save
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sft_data import Pair, Split, Texts, read_all, split
from sft_models import all_losses, all_scores, halfway, tiny, train
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from gradmimic.separation import auroc

VOCABULARY, WIDTH, LAYERS = 2000, 96, 2
TRUSTED, HELD_OUT, SHARE = 500, 100, 0.3
READ_SEED = 100
READING: dict[str, Any] = {"epochs": 4, "rate": 3e-3}
TUNING: dict[str, Any] = {"epochs": 8, "rate": 2e-3, "size": 8, "hidden": 0.4}
STARTS = ("read", "fresh")  # where model and reference begin
SCORERS = {
    "head": "mimic, head",
    "all": "mimic, all parameters",
    "halfway": "mimic, all, from halfway",
    "model": "perplexity of the model",
    "reference": "perplexity of the reference",
    "reducible": "reducible loss",
    "random": "random",
}


def well_read(texts: Texts) -> LlamaForCausalLM:
    """Return a model that has read everything but the instructions: one for all seeds."""
    fresh = tiny(VOCABULARY, WIDTH, LAYERS, READ_SEED)
    return train(fresh, texts.others, texts.others[::20], **READING, seed=READ_SEED)


def measure(texts: Texts, read: LlamaForCausalLM, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a row of figures for each start."""
    parts = split(texts.pairs, seed, TRUSTED, HELD_OUT, SHARE)
    trusted, held_out = rows(parts.trusted), rows(parts.held_out)
    fresh = tiny(VOCABULARY, WIDTH, LAYERS, seed)
    for start, model in zip(STARTS, (read, fresh), strict=True):
        began = time.process_time()
        reference = train(model, trusted, held_out, **TUNING, seed=seed)
        facts = {
            "seed": seed,
            "start": start,
            "model_loss": float(all_losses(model, held_out).mean()),
            "reference_loss": float(all_losses(reference, held_out).mean()),
        }
        found = judge(model, reference, parts, seed)
        yield {**facts, **found, "seconds": round(time.process_time() - began, 1)}


def rows(pairs: list[Pair], *, prompted: bool = True) -> list[tuple[list[int], list[int]]]:
    """Return tokens and labels."""
    return [pair.ids(prompted=prompted) for pair in pairs]


def judge(
    model: nn.Module, reference: nn.Module, parts: Split, seed: int
) -> dict[str, dict[str, float]]:
    """Return how well each score tells swapped responses, with and without what they gain."""
    behind, alone = (rows(parts.judged, prompted=prompted) for prompted in (True, False))
    both = [scores(model, reference, own) for own in (behind, alone)]
    chance = np.random.default_rng([seed, 1])
    both[0]["random"] = torch.from_numpy(chance.random(len(behind)))
    return {
        "prompted": {name: area(own, parts) for name, own in both[0].items()},
        "gained": {name: area(both[0][name] - own, parts) for name, own in both[1].items()},
    }


def scores(model: nn.Module, reference: nn.Module, own: Any) -> dict[str, Tensor]:
    """Return every score ``[n]``; higher is better."""
    here, there = all_losses(model, own), all_losses(reference, own)
    return {
        "head": all_scores(model, reference, own, "head"),
        "all": all_scores(model, reference, own, "all"),
        "halfway": all_scores(halfway(model, reference), reference, own, "all"),
        "model": -here,
        "reference": -there,
        "reducible": here - there,
    }


def area(found: Tensor, parts: Split) -> float:
    """Return the AUROC of telling swapped responses, which should score low, from the others."""
    value = auroc(found.numpy(), parts.swapped)
    assert value is not None  # noqa: S101
    return round(value, 4)


def table(results: list[dict[str, Any]]) -> Table:
    """Lay out mean ± deviation over the seeds."""
    columns = [(start, given) for start in STARTS for given in ("prompted", "gained")]
    shown = Table("AUROC", *(f"{start}, {given}" for start, given in columns))
    for scorer, name in SCORERS.items():
        cells = []
        for start, given in columns:
            own = [r[given][scorer] for r in results if r["start"] == start and scorer in r[given]]
            cells.append(
                f"{np.mean(own):.3f} ± {np.std(own, ddof=len(own) > 1):.3f}" if own else ""
            )
        shown.add_row(name, *cells)
    for name in ("model_loss", "reference_loss"):
        means = [np.mean([r[name] for r in results if r["start"] == start]) for start in STARTS]
        shown.add_row(name, *(cell for mean in means for cell in (f"{mean:.3f}", "")))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--again", action="store_true", help="show what is saved, train nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="100 for trials")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    if options.again:
        results = json.loads((RESULTS / "sft.json").read_text())["results"]
    else:
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        texts = read_all(VOCABULARY)
        read = well_read(texts)
        for seed in track(seeds, "training", console=Console(stderr=True)):
            results += measure(texts, read, seed)
        if options.first_seed == 0:
            save("sft", results, f"python benchmarks/sft.py --seeds {options.seeds}")
    Console(width=180).print(table(results))


if __name__ == "__main__":
    main()
