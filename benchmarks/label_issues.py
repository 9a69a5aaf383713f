"""Wrong labels: how many are found, how surely and how fast, beside cleanlab and friends.

Cases (label_issues_data.py) × methods (label_issues_methods.py) × seeds. Each cell runs in a
process of its own on one thread and is kept in ``--out``, so that what was stopped goes on where it
was. The tables give medians over seeds (the slowest methods get one): AUROC and average precision
of the score, F1 of what is flagged, and the most CPU seconds and memory that a case of the data
took, all training included.

Verdicts: with trusted rows ours has the best average precision and F1 of all methods that get as
many or fewer; without, neither is worse than cleanlab's, by its default filter and by confident
learning on cross-validated probabilities; and it takes a fifth of their CPU seconds.

Run: python benchmarks/label_issues.py --features FOLDER [--seeds 3] [--only WORDS]
needs cleanlab and scikit-learn; FOLDER/cifar10_lite0.npy comes from benchmarks/lite0_features.py
"""

import argparse
import hashlib
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from harness import save
from label_issues_data import SOURCES
from label_issues_measure import BIG, IN_TURNS, measure, workplace
from label_issues_methods import methods
from label_issues_tables import Row, goals, markdown, medians, verdicts
from rich.console import Console
from rich.progress import Progress

import gradmimic.label_issues
from gradmimic.reproduce.cells import Cell, run_cells

DATA = Path(os.environ.get("GRADMIMIC_DATA", Path(__file__).parents[2] / "shared" / "data"))
# One seed is enough for these.
SLOW = ("k-nearest neighbours", "Datalab, features", "cleanlab, cross-validated, C = 1")
SPEED = (("CIFAR-10", "symmetric", 0.2, 3), (BIG, "symmetric", 0.1, 1))  # the last: turns
FASTER = 5  # times, than cleanlab with its cross-validation


def versions(method: str) -> str:
    """Return what a method's figures depend on: our source, or the rivals' versions."""
    found = " ".join(f"{name} {version(name)}" for name in ("cleanlab", "scikit-learn", "torch"))
    if not method.startswith("ours"):
        return found
    folder = Path(gradmimic.label_issues.__file__).parent
    code = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))
    return f"{found} {hashlib.sha256(code).hexdigest()[:12]}"


def cells(seeds: int, width: int) -> list[Cell]:
    """List the configurations, the slow ones last."""

    def cell(name: str, noise: str, rate: float, seed: int, method: str, **more: int) -> Cell:
        own = {"data": name, "noise": noise, "rate": rate, "seed": seed, "method": method}
        wide = {"features": width} if name == "CIFAR-10" else {}
        return {**own, "versions": versions(method), **wide, **more}

    found = [
        cell(name, *noise, seed, method)
        for seed in range(seeds)
        for name, source in SOURCES.items()
        for noise in source.noise
        for method in methods(source.trusted)
        if seed == 0 or method not in SLOW
    ]
    found += [
        cell(name, noise, rate, 0, IN_TURNS, turns=turns) for name, noise, rate, turns in SPEED
    ]
    return sorted(found, key=lambda cell: cell["method"] in SLOW)


def named(cell: Cell) -> str:
    """Name the case and the method of a cell."""
    return f"{cell['data']}, {cell['noise']} {cell['rate']}: {cell['method']}"


def rows_of(cell: Cell, values: Any) -> Iterator[Row]:
    """Yield what a cell came to, row by row of the table."""
    method, noise = cell["method"], cell["noise"]
    place = f"{cell['data']}, {noise}" + (f" {cell['rate']}" if cell["rate"] else "")
    trusted = int(method.split()[-2].replace(",", "")) if method.endswith("trusted") else 0
    for name, row in values.items():
        own = {"data": cell["data"], "case": place, "trusted": trusted, **row}
        yield own | {"method": f"{method}: {name}" if name else method}


def main() -> None:
    """Print tables and verdicts, and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, help="the folder of cifar10_lite0.npy")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--only", default="", help="cells of such data, noise and method: 'human + ours'; not saved"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/label_issues"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in every cell
    wide = arguments.features is not None
    asked = [
        cell
        for cell in cells(arguments.seeds, 1280 if wide else 384)
        if all(word in named(cell) for word in arguments.only.split(" + "))
    ]
    rows: list[Row] = []
    speed: list[Row] = []
    with Progress(console=Console(stderr=True)) as progress, workplace() as place:
        task = progress.add_task("cells", total=len(asked))
        for cell, values in run_cells(
            asked,
            lambda cell: place.submit(measure, cell, DATA, arguments.features).result(),
            arguments.out,
            lambda: progress.advance(task),
        ):
            if cell["method"] == IN_TURNS:
                speed.append({"data": cell["data"], **values, "met": values["ratio"] >= FASTER})
            else:
                rows += rows_of(cell, values)
    found = medians(rows)
    judged = list(verdicts(found))
    for name in SOURCES:
        if any(row["data"] == name for row in found):
            print(markdown(found, name))
    if judged:
        print(goals(judged))
    for row in speed:
        print(f"{'met' if row['met'] else 'NOT MET'}: {row['data']}: {row['ratio']:.1f} × faster")
    if not arguments.only:
        results = {"rows": found, "verdicts": judged, "speed": speed}
        command = "python benchmarks/label_issues.py" + " --features FOLDER" * wide
        print(f"saved to {save('label_issues', results, command)}")


if __name__ == "__main__":
    main()
