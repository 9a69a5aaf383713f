"""What the running statistics of transport need: one factor at a time around the defaults.

    AUROC of finding the wrong labels by the mean score, and by the first epoch's alone
    regret of a setting = max over sets (the set's best AUROC of that factor − the setting's)

One training per set and seed, on GradMimic's own weights; every setting watches it and scores the
same samples with the same weights, so that settings differ in nothing else. References come from
another initialisation and are read from a table. Constants are those of gradmimic.transport.

Run: python benchmarks/transport.py [--part factors ends shapes large] [--seeds 2]
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from harness import RESULTS, interleave, save
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from transport_sets import SETS, Task, few, long_tailed, shuffled, thousand_classes, wide

from gradmimic import GradMimic, transport
from gradmimic.direction import choose
from gradmimic.outputs import Outputs
from gradmimic.separation import auroc

LIMIT = 1e6  # SHARPNESS → ∞: v ∝ W*
FACTORS: dict[str, list[float]] = {
    "MEMORY": [10, 25, 50, 100, 400, math.inf],
    "RIDGE": [0.001, 0.01, 0.03, 0.1, 0.3, 1, 10],
    "SOON": [1 / 64, 1 / 16, 1 / 4, 1],
    "EVERY": [1, 16, 64, 256],
    "fixed interval": [1, 4, 16, 64, 256],
    "FIRST": [1, 8, 32],
    "SHARPNESS": [1, 2, 4, 8, 16, LIMIT],
    "reference's logits ×": [0.25, 1, 4],
}
WINDOWS = ((1, 8), (8, 16), (16, 32), (32, 64), (64, 128), (128, 256))  # steps

Setting = Mapping[str, float]


def setting_of(name: str, value: float) -> Setting:
    """Return what differs from the defaults."""
    if name == "fixed interval":
        return {"SOON": math.inf, "EVERY": value}
    default = 1 if name == "reference's logits ×" else getattr(transport, name)
    return {} if value == default else {name: value}


@contextmanager
def constants(setting: Setting) -> Iterator[None]:
    """Let gradmimic.transport use other constants for a while."""
    places: dict[str, tuple[Any, str]] = {
        name: (transport.Transport, "first") if name == "FIRST" else (transport, name)
        for name in setting
        if hasattr(transport, name)
    }
    before = {name: getattr(*place) for name, place in places.items()}
    try:
        for name, place in places.items():
            setattr(*place, setting[name])
        yield
    finally:
        for name, place in places.items():
            setattr(*place, before[name])


class Watcher:
    """Scores a training that it does not touch, under a setting of its own."""

    def __init__(self, model: nn.Sequential, task: Task, setting: Setting) -> None:
        self.setting = setting
        scale = setting.get("reference's logits ×", 1.0)
        outputs = Outputs(np.arange(len(task.x)), task.said * scale)
        self.transport = transport.Transport(model, choose(model, "1.*"), outputs)
        self.scores = np.full((task.epochs, len(task.x)), np.nan)

    def score(self, h: Tensor, p: Tensor, y: Tensor) -> Tensor | None:
        """Return −⟨∇ℓ, v⟩/‖v‖ ``[b]`` in closed form: cross-entropy, a linear layer."""
        with constants(self.setting):
            v = self.transport.direction()
        if v is None:
            return None
        dz = F.linear(h, v.tensors["1.weight"], v.tensors["1.bias"])  # [b, K]
        return (dz.gather(1, y[:, None])[:, 0] - (p * dz).sum(1)) / v.norm

    def learn(self, rows: Tensor) -> None:
        with constants(self.setting):
            self.transport.observe(rows)


def train(
    task: Task, seed: int, setting: Setting | None, watched: list[Setting] | None = None
) -> dict[str, Any]:
    """Train end to end under one setting (None: on the plain mean) while others watch."""
    model = task.build(seed)
    head = model[1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.lr, weight_decay=1e-5)
    steps = task.epochs * math.ceil(len(task.x) / task.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    own = dict(setting or {})
    table = Outputs(np.arange(len(task.x)), task.said * own.get("reference's logits ×", 1.0))
    mimic = GradMimic(
        model, table, align="transport", params="1.*",
        temperature="auto" if setting is not None else math.inf,
    )  # fmt: skip
    watchers = [Watcher(model, task, each) for each in watched or []]
    visited = np.zeros((task.epochs, len(task.x)), dtype=np.int64)  # at which step
    generator, step = torch.Generator().manual_seed(seed + 1000), 0
    start = time.perf_counter()
    features: dict[str, Tensor] = {}
    keep = head.register_forward_pre_hook(lambda _m, args: features.update(h=args[0].detach()))
    with constants(own):
        for epoch in range(task.epochs):
            for rows in torch.randperm(len(task.x), generator=generator).split(task.batch):
                y = task.noisy[rows]
                with ExitStack() as stack:
                    for watcher in watchers:
                        stack.enter_context(watcher.transport.watching())
                    with mimic:
                        z = model(task.x[rows])
                losses = F.cross_entropy(z, y, reduction="none")
                p = z.detach().softmax(1)
                for watcher in watchers:
                    scores = watcher.score(features["h"], p, y)
                    if scores is not None:
                        watcher.scores[epoch, rows.numpy()] = scores.numpy()
                    watcher.learn(rows)
                visited[epoch, rows.numpy()] = step
                optimizer.zero_grad()
                mimic.weigh(losses, rows, epoch=epoch).backward()
                optimizer.step()
                schedule.step()
                step += 1
    keep.remove()
    return {
        "set": task.name,
        "seed": seed,
        "setting": _plain(setting),
        "accuracy": task.accuracy(model),
        "seconds": time.perf_counter() - start,
        "watched": [measure(task, w.scores, visited, w.setting) for w in watchers],
    }


def measure(
    task: Task, scores: np.ndarray[Any, Any], visited: np.ndarray[Any, Any], setting: Setting
) -> dict[str, Any]:
    """Take the AUROC of mean score, of each epoch and of the first steps, and of class groups."""
    wrong = (task.noisy != task.y).numpy()
    seen = ~np.isnan(scores)
    ever = seen.any(0)  # in a single epoch the first samples pass before there is a direction
    mean = np.where(seen, scores, 0).sum(0) / np.maximum(seen.sum(0), 1)
    found: dict[str, Any] = {
        "setting": _plain(setting),
        "mean": auroc(mean[ever], wrong[ever]),
        "epochs": [
            auroc(own[k], wrong[k]) if k.any() else None
            for own, k in zip(scores, seen, strict=True)
        ],
    }
    first = {}
    for low, high in WINDOWS:
        inside = seen & (visited >= low) & (visited < high)
        if inside.sum() >= 100:
            bad = np.broadcast_to(wrong, inside.shape)[inside]
            first[f"{low} to {high - 1}"] = auroc(scores[inside], bad)
    found["steps"] = first
    for name, labels in (("given", task.noisy), ("true", task.y)):
        for group, classes in task.groups.items():
            inside = np.isin(labels.numpy(), classes) & ever
            found[f"{group}, by {name} label"] = auroc(mean[inside], wrong[inside])
    return found


def one_at_a_time(names: list[str]) -> list[Setting]:
    """List the defaults, then every other value of each factor."""
    settings: list[Setting] = [{}]
    settings += [own for n in names for v in FACTORS[n] if (own := setting_of(n, v))]
    return settings


def factors(seeds: int, show: Console) -> list[dict[str, Any]]:
    """Watch one training per set and seed under all settings."""
    results = []
    for make in SETS.values():
        for seed in range(seeds):
            task = make(seed)
            results.append(train(task, seed, {}, one_at_a_time(list(FACTORS))))
            results[-1]["reference"] = task.reference
            show.print(task.name, seed, round(results[-1]["seconds"]), task.reference)
    for name in FACTORS:
        regrets(name, results, show)
    return results


def regrets(name: str, results: list[dict[str, Any]], show: Console) -> None:
    """Print a factor's AUROC on each set, and the worst regret over the sets."""
    sets = list(dict.fromkeys(row["set"] for row in results))
    table = Table(name, *sets, "regret", "regret, epoch 1", title=f"AUROC, mean | epoch 1: {name}")
    cells: dict[float, dict[str, tuple[float, float]]] = {}
    for value in FACTORS[name]:
        setting = _plain(setting_of(name, value))
        cells[value] = {}
        for each in sets:
            own = [
                watched
                for row in results
                if row["set"] == each
                for watched in row["watched"]
                if watched["setting"] == setting
            ]
            if own:
                first = [w["epochs"][0] for w in own if w["epochs"][0] is not None]
                mean = statistics.mean(w["mean"] for w in own)
                cells[value][each] = (mean, statistics.mean(first) if first else math.nan)
    for value, row in cells.items():
        if not row:
            continue
        regret = [
            max(max(c[s][i] for c in cells.values() if s in c) - row[s][i] for s in row)
            for i in (0, 1)
        ]
        table.add_row(
            f"{value:g}", *(f"{row[s][0]:.3f} | {row[s][1]:.3f}" for s in sets),
            *(f"{r:.3f}" for r in regret),
        )  # fmt: skip
    show.print(table)


def ends(seeds: int, show: Console) -> list[dict[str, Any]]:
    """Train under the extremes themselves: does the test accuracy notice?"""
    extremes: list[Setting | None] = [
        None, {}, setting_of("fixed interval", 16), setting_of("fixed interval", 64),
        {"MEMORY": 10}, {"SHARPNESS": 1}, {"SHARPNESS": 4}, {"SHARPNESS": LIMIT},
    ]  # fmt: skip
    results = []
    for make in SETS.values():
        for seed in range(seeds):
            task = make(seed)
            results += [train(task, seed, setting) for setting in extremes]
    sets = list(dict.fromkeys(row["set"] for row in results))
    table = Table("setting", *sets, title="test accuracy")
    for setting in extremes:
        rows = [row for row in results if row["setting"] == _plain(setting)]
        means = (statistics.mean(r["accuracy"] for r in rows if r["set"] == s) for s in sets)
        table.add_row("plain" if setting is None else str(setting), *(f"{m:.3f}" for m in means))
    show.print(table)
    return results


def shapes(_seeds: int, show: Console) -> list[dict[str, Any]]:
    """Other batch sizes, few samples, long tails."""
    memory, both = one_at_a_time(["MEMORY"]), one_at_a_time(["MEMORY", "RIDGE", "SHARPNESS"])
    results = []
    for task, settings in (
        *((shuffled(SETS["fashion-mnist"](0), batch), memory) for batch in (16, 256)),
        *((few(SETS["fashion-mnist"](0), n), both) for n in (10, 100)),
        *((few(SETS["banking77"](0), n), both) for n in (5, 20)),
        (long_tailed(SETS["fashion-mnist"](0)), both),
    ):
        results.append(train(task, 0, {}, settings) | {"reference": task.reference})
        watched(task, results[-1], show)
    return results


def large(_seeds: int, show: Console) -> list[dict[str, Any]]:
    """Heads on 2,048 features, for 10 and for 1,000 classes: AUROC and cost."""
    results: list[dict[str, Any]] = []
    settings: list[Setting] = [{}, {"MEMORY": 10}, {"RIDGE": 0.001}]
    others = [{"RIDGE": 1.0}, setting_of("fixed interval", 16), setting_of("fixed interval", 64)]
    for task, more in (
        (wide(SETS["fashion-mnist"](0)), others),
        (thousand_classes(0), others[:0]),
    ):
        results.append(train(task, 0, {}, settings + more) | {"reference": task.reference})
        watched(task, results[-1], show)
    results.append(cost(show))
    return results


def watched(task: Task, result: Mapping[str, Any], show: Console) -> None:
    """Print what each setting came to on one task."""
    show.print(task.name, round(result["seconds"]), "s", task.reference)
    steps = list(result["watched"][0]["steps"])
    table = Table("setting", "mean", "epoch 1", *task.groups, *steps, title=task.name)
    for w in result["watched"]:
        groups = (w[f"{g}, by given label"] for g in task.groups)
        cells = (w["mean"], w["epochs"][0], *groups, *(w["steps"].get(s) for s in steps))
        table.add_row(str(w["setting"]), *(f"{cell or math.nan:.3f}" for cell in cells))
    show.print(table)


def cost(show: Console, d: int = 2049, k: int = 1000, b: int = 64) -> dict[str, Any]:
    """Time the parts at ImageNet's size, next to a step of ResNet-50 on the same thread."""
    from transformers import ResNetConfig, ResNetForImageClassification

    fit = transport.Ridge(d, k, torch.device("cpu"))
    h, z, few_images = torch.rand(b, d), torch.randn(b, k), 4
    for _ in range(40):
        fit.add(h, z)
    model = ResNetForImageClassification(ResNetConfig(num_labels=k))  # type: ignore[call-arg]
    images = torch.randn(few_images, 3, 224, 224)

    def step() -> None:
        model(images).logits.sum().backward()

    timed = interleave(
        {"step": step, "add": lambda: fit.add(h, z), "solve": fit.solve,
         "length": lambda: fit.length(fit.b)}, turns=3, warmup=1,
    )  # fmt: skip
    found: dict[str, Any] = {name: timing.seconds for name, timing in timed.items()}
    found["step"] *= b / few_images
    found |= {"d": d, "k": k, "b": b, "bytes": 4 * (d * d + d * k)}
    for steps in (1_000, 10_000, 100_000):
        solves, at = 0, transport.FIRST
        while at < steps:
            solves, at = solves + 1, at + max(1, int(min(transport.EVERY, transport.SOON * at)))
        extra = found["add"] + (found["solve"] + 2 * found["length"]) * solves / steps
        found[f"solves in {steps} steps"], found[f"share of {steps} steps"] = (
            solves, extra / found["step"],
        )  # fmt: skip
    show.print(found)
    return {"set": "cost", **found}


def _plain(setting: Setting | None) -> dict[str, float | str] | None:
    """Return a setting as JSON can hold it."""
    if setting is None:
        return None
    return {name: "inf" if value == math.inf else value for name, value in setting.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    show, before = Console(width=170), RESULTS / "transport.json"
    results = json.loads(before.read_text())["results"] if before.exists() else {}
    for part in options.part:
        results[part] = PARTS[part](options.seeds, show)
        save("transport", results, f"python benchmarks/transport.py --seeds {options.seeds}")


PARTS = {"factors": factors, "ends": ends, "shapes": shapes, "large": large}

if __name__ == "__main__":
    main()
