"""What a label model costs: a million samples, five voters; time, memory and who is right.

    ratio = median_t (rival_t / ours_t)      each candidate in a process of its own, in turns
    peak  = most resident memory of that process: interpreter, libraries, votes and the work

Ours starts at the vote matrix: finding the patterns, EM until the posteriors stand still, and a
posterior for every sample are all timed. The rivals' clocks start at the form they ask for, and
run their own number of steps. Imports and a first run on 1,000 samples are outside every clock.

Goals: two coins ≥ 30 times faster than crowd-kit's DawidSkene and ≥ 4 times faster than snorkel's
LabelModel, in less memory than either.

Run: python benchmarks/label_models.py [--quick]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# The harness imports torch: only the parent may, lest its memory is counted as a candidate's.

Votes = npt.NDArray[np.int8]
Posterior = npt.NDArray[np.float64]

RATES = [0.97, 0.93, 0.90, 0.85, 0.80]  # how often each voter is right, whatever the truth
PRIOR = 0.8
ABSTAIN = [0.0, 0.3]


def synthetic(
    n: int, prior: float, abstain: float, seed: int = 0
) -> tuple[Votes, npt.NDArray[np.bool_]]:
    """Draw votes ``[n, 5]`` and the truth ``[n]``."""
    r = np.random.default_rng(seed)
    truth = r.random(n) < prior
    right = r.random((n, len(RATES))) < RATES
    votes = np.where(right, truth[:, None], ~truth[:, None]).astype(np.int8)
    votes[r.random(votes.shape) < abstain] = -1
    return votes, truth


def ours(name: str) -> Callable[[Votes], Callable[[], Posterior]]:
    """Return one of our label models, from the matrix."""
    from gradmimic.curate import label_model
    from gradmimic.curate.vote_patterns import patterns_of, tally

    def posterior(votes: Votes) -> Posterior:
        found = patterns_of(votes)
        ayes, nays = tally(found.patterns)
        if name == "majority":
            return label_model.majority(ayes, nays)[found.inverse]
        fit = {"one coin": label_model.one_coin, "two coins": label_model.dawid_skene}[name]
        return fit(ayes, nays, found.counts).p_keep[found.inverse]

    return lambda votes: lambda: posterior(votes)


def crowd_kit() -> Callable[[Votes], Callable[[], Posterior]]:
    """Return crowd-kit's two coins; the table it asks for is made before the clock starts."""
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    # pandas 3 warns of two keywords that crowd-kit 1.4 still passes.
    warnings.filterwarnings("ignore", "The (inplace|copy) keyword", module=r"crowdkit\.")

    def prepare(votes: Votes) -> Callable[[], Posterior]:
        task, worker = np.nonzero(votes >= 0)
        label = votes[task, worker].astype(np.int64)
        table = pd.DataFrame({"task": task, "worker": worker, "label": label})
        del task, worker, label

        def posterior() -> Posterior:
            found = DawidSkene().fit_predict_proba(table)
            p_keep = np.full(len(votes), 0.5)  # it leaves out the samples without votes
            p_keep[found.index] = found[1]
            return p_keep

        return posterior

    return prepare


def snorkel(seed: int, balance: list[float] | None) -> Callable[[Votes], Callable[[], Posterior]]:
    """Return snorkel's label model, told the class balance or not."""
    from snorkel.labeling.model import LabelModel

    def posterior(votes: Votes) -> Posterior:
        model = LabelModel(verbose=False)
        model.fit(votes, class_balance=balance, seed=seed, progress_bar=False)
        return np.asarray(model.predict_proba(votes)[:, 1])

    return lambda votes: lambda: posterior(votes)


def candidate(name: str, seed: int) -> Callable[[Votes], Callable[[], Posterior]]:
    """Import a candidate."""
    if name == "crowd-kit":
        return crowd_kit()
    if name.startswith("snorkel"):
        return snorkel(seed, [1 - PRIOR, PRIOR] if name.endswith("told") else None)
    return ours(name)


CANDIDATES = ["two coins", "one coin", "majority", "crowd-kit", "snorkel", "snorkel, told"]


def resident_mib(kind: str) -> float:
    """Return the resident memory of this process: now (VmRSS), or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def child(name: str, folder: Path, seed: int) -> None:
    """Measure one candidate in this process, and print what was found as JSON."""
    prepare = candidate(name, seed)
    imported = resident_mib("VmRSS")
    votes = np.load(folder / "votes.npy")
    prepare(votes[:1000])()  # whatever a library does once
    run = prepare(votes)
    start = time.perf_counter()
    p_keep = run()
    seconds = time.perf_counter() - start
    peak = resident_mib("VmHWM")
    right = (p_keep >= 0.5) == np.load(folder / "truth.npy")
    found = {"seconds": seconds, "peak_mib": peak, "imported_mib": imported}
    print(json.dumps(found | {"accuracy": float(right.mean())}))


def in_turns(n: int, abstain: float, turns: int) -> list[dict[str, Any]]:
    """Measure all candidates in turns, every other turn in reverse order."""
    from rich.progress import track

    measured: dict[str, list[dict[str, float]]] = {name: [] for name in CANDIDATES}
    with tempfile.TemporaryDirectory() as folder:
        votes, truth = synthetic(n, PRIOR, abstain)
        np.save(f"{folder}/votes.npy", votes)
        np.save(f"{folder}/truth.npy", truth)
        rounds = [CANDIDATES[:: -1 if turn % 2 else 1] for turn in range(turns)]
        order = [(name, turn) for turn, names in enumerate(rounds) for name in names]
        for name, turn in track(order, f"{abstain:.0%} abstain"):
            command = [sys.executable, __file__, "--child", name, folder, str(turn)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
            measured[name].append(json.loads(done.stdout.splitlines()[-1]))
    base = [turn["seconds"] for turn in measured[CANDIDATES[0]]]
    return [
        {
            "candidate": name,
            "abstain": abstain,
            "ratio": statistics.median(
                own["seconds"] / ours for own, ours in zip(found, base, strict=True)
            ),
            "peak_mib": max(turn["peak_mib"] for turn in found),
            "imported_mib": max(turn["imported_mib"] for turn in found),
            "seconds": [turn["seconds"] for turn in found],
            "accuracy": [turn["accuracy"] for turn in found],
        }
        for name, found in measured.items()
    ]


def who_is_right(n: int) -> list[dict[str, Any]]:
    """Compare our label models with the truth, where classes are balanced and where not."""
    rows = []
    for prior in (0.5, PRIOR):
        for abstain in ABSTAIN:
            votes, truth = synthetic(n, prior, abstain)
            posteriors = {name: ours(name)(votes)() for name in CANDIDATES[:3]}
            right = {name: float(((p >= 0.5) == truth).mean()) for name, p in posteriors.items()}
            ties = float((posteriors["majority"] == 0.5).mean())
            rows.append({"prior": prior, "abstain": abstain, "ties": ties, **right})
    return rows


def show(rows: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    """Print two tables."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="label models")
    for column in ("abstain", "candidate", "seconds", "× two coins", "peak MiB", "accuracy"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    for row in rows:
        low, high = min(row["accuracy"]), max(row["accuracy"])
        table.add_row(
            f"{row['abstain']:.0%}",
            row["candidate"],
            f"{statistics.median(row['seconds']):.3f}",
            f"{row['ratio']:.1f}",
            f"{row['peak_mib']:.0f}",
            f"{low:.4f}" + (f" – {high:.4f}" if high > low else ""),
            end_section=row["candidate"] == CANDIDATES[-1],
        )
    accuracies = Table(title="share of right decisions; a tie keeps")
    for column in ("to keep", "abstain", "ties", "majority", "one coin", "two coins"):
        accuracies.add_column(column, justify="right")
    for row in right:
        shares = (f"{row[name]:.4f}" for name in ("ties", "majority", "one coin", "two coins"))
        accuracies.add_row(f"{row['prior']:.0%}", f"{row['abstain']:.0%}", *shares)
    console = Console()
    console.print(table)
    console.print(accuracies)


def met(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Say which goals are met, at every share of abstentions."""
    ours = {row["abstain"]: row for row in rows if row["candidate"] == CANDIDATES[0]}
    goals = {}
    for rival, factor in (("crowd-kit", 30), ("snorkel", 4), ("snorkel, told", 4)):
        theirs = [row for row in rows if row["candidate"] == rival]
        goals[f"{factor} times faster than {rival}"] = all(row["ratio"] >= factor for row in theirs)
        goals[f"less memory than {rival}"] = all(
            ours[row["abstain"]]["peak_mib"] < row["peak_mib"] for row in theirs
        )
    return goals


def main() -> None:
    """Print the tables and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples; saves nothing")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, folder, seed = arguments.child
        return child(name, Path(folder), int(seed))
    n, turns = (20_000, 1) if arguments.quick else (1_000_000, 2)
    rows = [row for abstain in ABSTAIN for row in in_turns(n, abstain, turns)]
    right = who_is_right(n)
    goals = met(rows)
    show(rows, right)
    for goal, reached in goals.items():
        print(f"{'reached' if reached else 'MISSED '}  {goal}")
    if not arguments.quick:
        from harness import save

        results = {"samples": n, "rates": RATES, "prior": PRIOR, "turns": turns}
        results |= {"candidates": rows, "accuracies": right, "goals": goals}
        print(f"saved to {save('label_models', results, 'python benchmarks/label_models.py')}")
    return None


if __name__ == "__main__":
    main()
