"""What scorers cost: a training step with none of them, one, or all, against the plain step.

    ratio = median_t (step with scorers_t / plain step_t)      all take turns in one process

On a CPU by the time that this process computes, so that what else runs on the machine has no part
in it. Every step logs its scores. ``weighed by`` are steps on the weights of that scorer, alone;
``GradMimic`` is the same for mimic. ``influence`` looks at two trusted samples of each class.

Run: python benchmarks/scorers.py [--quick]
"""

import argparse
import copy
import tempfile
import time
from typing import Any

import torch
from harness import interleave, save
from overhead import CLASSES, DEVICE, MODELS
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from gradmimic import GradMimic, Outputs, ScoreLog
from gradmimic.scorers import SCORERS, BatchScorer, Loss, Scorer

WEIGH: dict[str, str | Scorer] = {
    name: Loss(keep=0.6) if name == "loss" else name
    for name, scorer in SCORERS.items()
    if name == "loss" or scorer().online
}


class Step:
    """One training step on one fixed batch.

    Args:
        model: which; every step has its own.
        batch: b.
        log: receives the scores.
        scorers: None for a plain step.
        weigh_by: what weighs.
        mimic: weigh by GradMimic.
    """

    def __init__(
        self,
        model: str,
        batch: int,
        log: ScoreLog,
        scorers: list[str] | None = None,
        weigh_by: str | Scorer | None = None,
        mimic: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.model = MODELS[model]().to(DEVICE)
        self.x = torch.randn(batch, 3, 32, 32, device=DEVICE)
        self.y = torch.randint(CLASSES, (batch,), device=DEVICE)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.ids, self.steps = torch.arange(batch), 0
        better = self._better()
        self.mimic = GradMimic(self.model, better, log=log) if mimic else None
        self.scores = None
        if scorers is not None:
            few = torch.arange(2 * CLASSES, device=DEVICE) % CLASSES
            self.scores = BatchScorer(
                self.model,
                scorers,
                weigh_by=weigh_by,
                reference=better,
                outputs=Outputs(range(batch), torch.randn(batch, CLASSES)),
                trusted=(torch.randn(len(few), 3, 32, 32, device=DEVICE), few),
                optimizer=self.optimizer,
                log=log,
            )

    def _better(self) -> dict[str, torch.Tensor]:
        """Return another head."""
        head = copy.deepcopy([m for m in self.model.modules() if isinstance(m, nn.Linear)][-1])
        head.reset_parameters()
        last = [name for name, m in self.model.named_modules() if isinstance(m, nn.Linear)][-1]
        return {f"{last}.{name}": value for name, value in head.state_dict().items()}

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        if self.mimic is not None:
            with self.mimic:
                losses = F.cross_entropy(self.model(self.x), self.y, reduction="none")
            loss = self.mimic.weigh(losses, self.ids, epoch=self.steps)
        elif self.scores is not None:
            with self.scores:
                logits = self.model(self.x)
            loss = self.scores.weigh(logits, self.y, self.ids, epoch=self.steps)
        else:
            loss = F.cross_entropy(self.model(self.x), self.y)
        self.steps += 1
        loss.backward()
        self.optimizer.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()


def measure(model: str, batch: int, turns: int) -> dict[str, Any]:
    """Return the ratios of one model and batch; each kind of step beside a plain one of its own."""
    cases: dict[str, dict[str, Any]] = {
        "plain again": {},
        "none": {"scorers": []},
        **{name: {"scorers": [name]} for name in SCORERS},
        "all but influence": {"scorers": [name for name in SCORERS if name != "influence"]},
        "all": {"scorers": [*SCORERS]},
        **{f"weighed by {n}": {"scorers": [], "weigh_by": own} for n, own in WEIGH.items()},
        "GradMimic": {"mimic": True},
    }
    if model != "MLP":
        chosen = ("plain again", "none", "loss", "all but influence", "all", "GradMimic")
        cases = {name: cases[name] for name in chosen}
    clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time
    ratios: dict[str, float] = {}
    plain = 0.0
    for name, case in cases.items():  # few models at once, so that they do not fight for caches
        with tempfile.TemporaryDirectory() as folder, ScoreLog(folder) as log:
            steps = {"plain": Step(model, batch, log), name: Step(model, batch, log, **case)}
            timing = interleave(steps, turns=turns, clock=clock)
        ratios[name], plain = timing[name].ratio, timing["plain"].seconds
    return {"model": model, "batch": batch, "plain_seconds": plain, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few turns, small batches")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    cases = [("MLP", 8)] if quick else [("MLP", 32), ("MLP", 128), ("ResNet-18", 32)]
    turns = {"MLP": 3 if quick else 31, "ResNet-18": 7}
    results = [
        measure(model, batch, turns[model])
        for model, batch in track(cases, "measuring", console=Console(stderr=True))
    ]
    table = Table("step", *(f"{row['model']}, batch {row['batch']}" for row in results))
    plain = (f"{1e3 * row['plain_seconds']:.1f} ms" for row in results)
    table.add_row("plain", *plain)
    for name in results[0]["ratios"]:
        cells = (row["ratios"].get(name) for row in results)
        table.add_row(name, *("" if cell is None else f"{cell:.3f}" for cell in cells))
    Console().print(table)
    if not quick:
        save("scorers", results, "python benchmarks/scorers.py")


if __name__ == "__main__":
    main()
