"""Trainings that run alike in one process and on the ranks of several, and a way to start those."""

import importlib
import os
import subprocess
import sys
import time
import traceback
import warnings
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from gradmimic import Canaries, GradMimic, Outputs, ScoreLog
from gradmimic.atomic import atomic_write

WIDTH, HIDDEN, CLASSES, BATCH = 6, 7, 4, 12
CUTS = (7, 12, 5, 0)  # where a batch is cut in two: even, uneven, and nothing for one of them


class Net(nn.Module):
    def __init__(self, unused=False):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Tanh())
        if unused:
            self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        return self.head(self.trunk(x))


class Elsewhere(nn.Module):
    """Its head is not the module registered last."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(HIDDEN, CLASSES)
        self.trunk = nn.Linear(WIDTH, HIDDEN)

    def forward(self, x):
        return self.head(self.trunk(x).tanh())


class Twofold(nn.Module):
    """Two projections into one space."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES, False)

    def forward(self, x):
        return self.one(x) * self.other(x)


def batch_of(step, size=BATCH):
    chance = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(size, WIDTH, generator=chance).double()
    y = x[:, :CLASSES].argmax(1)
    return x, y, torch.arange(step * BATCH, step * BATCH + size)


def models(kind=Net, **options):
    torch.manual_seed(3)
    model = kind(**options).double()
    reference = kind(**options).double()
    reference.load_state_dict(model.state_dict())
    trained = torch.optim.Adam(reference.parameters(), lr=0.02)
    x, y, _ = batch_of(-1, 200)
    for _ in range(80):
        trained.zero_grad()
        F.cross_entropy(reference(x), y).backward()
        trained.step()
    return model, reference


def table(known):
    """What a reference says of the samples of all batches, or of a part of them."""
    chance = torch.Generator().manual_seed(5)
    said = torch.randn(60 * BATCH, CLASSES, generator=chance)
    ids = torch.arange(60 * BATCH)
    if not known:
        said, ids = said[ids % 3 > 0], ids[ids % 3 > 0]
    return Outputs(ids.tolist(), said)


def train(
    rank, size, *,
    steps=4, kind=Net, wrap="ddp", given="ddp", ddp=None, net=None, known=None, canaries=None,
    cuts=CUTS, joined=(), log=None, accumulate=1, options=None,
):  # fmt: skip
    """Train, and tell everything about it; one process gets all samples of each batch.

    Rank 1 has no batch at the steps ``joined``, and one process only rank 0's part then.
    """
    torch.manual_seed(0)
    model, reference = models(kind, **(net or {}))
    called = model
    if size > 1 and wrap == "ddp":
        called = DistributedDataParallel(model, **(ddp or {}))
    if known is not None:
        reference = table(known)
    record = None if log is None else ScoreLog(log, seed=0, rows_per_part=20)
    mimic = GradMimic(called if given == "ddp" else model, reference, log=record, **(options or {}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def one(step):
        x, y, ids = batch_of(step)
        if size > 1 or step in joined:
            cut = cuts[step % len(cuts)]
            here = slice(0, cut) if rank == 0 else slice(cut, None)
            x, y, ids = x[here], y[here], ids[here]
        last = (step + 1) % accumulate == 0
        with called.no_sync() if called is not model and not last else nullcontext():
            with mimic:
                logits = called(x)
                losses = F.cross_entropy(logits, y, reduction="none")
                drawn = None
                if canaries is not None:
                    drawn = Canaries(**canaries).labels(logits, y, ids)
            loss = mimic.weigh(losses, ids, epoch=0, canaries=drawn)
            loss.backward()
        told.append({
            "loss": loss.detach(), "scores": mimic.scores, "weights": mimic.weights, "ids": ids,
        })  # fmt: skip
        if last:
            told[-1]["gradients"] = {n: p.grad.clone() for n, p in model.named_parameters()
                                     if p.grad is not None}  # fmt: skip
            optimizer.step()
            optimizer.zero_grad()

    told = []
    with Join([mimic, called]) if size > 1 and joined else nullcontext():
        for step in range(max(joined, default=-1) + 1):
            if size == 1 or rank == 0 or step not in joined:
                one(step)
    for step in range(max(joined, default=-1) + 1, steps):
        one(step)
    if record is not None:
        record.close()
    facts = {"aligned": mimic.aligned, "overtaken": mimic.overtaken, "step": mimic.step}
    weights = {name: w.clone() for name, w in model.state_dict().items()}
    return {"steps": told, "weights": weights, **facts}


def run_on_two(folder, names, patience=60):
    """Run "module.case" on two ranks; return what each rank returned, by name.

    Args:
        folder: where the ranks meet, and write.
        names: keys of the CASES of test modules, after the module's name and a dot.
        patience: seconds that a rank waits for the other one.
    """
    script = Path(__file__).resolve()
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                str(script),
                str(rank),
                str(folder),
                str(patience),
                *names,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        output = [process.communicate(timeout=300)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    codes = [process.returncode for process in ranks]
    return results(Path(folder)), codes, output


def run_once(base, names):
    """Run cases on two ranks once for all workers of a test run; return what it returned.

    Args:
        base: a folder that these workers share.
        names: as of run_on_two.
    """
    folder = Path(base) / "on-two-ranks"
    try:
        folder.mkdir()
    except FileExistsError:  # another worker runs them
        for _ in range(600):
            if (folder / "output").exists():
                break
            time.sleep(0.5)
    else:
        output = "\n".join(run_on_two(folder, names)[2])
        with atomic_write(folder / "output") as file:
            file.write(output.encode())
    found, output = results(folder), (folder / "output").read_text()
    for told in found:
        for name in names:
            assert name in told, f"a rank did not come to {name}:\n{output}"
            assert not isinstance(told[name], str), told[name]
    return found, folder


def results(folder):
    """Return what each rank returned, by name."""
    files = [folder / f"rank-{rank}.pt" for rank in range(2)]
    return [torch.load(file, weights_only=True) if file.exists() else {} for file in files]


def main(rank, folder, patience, names):
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "params='head'")
    warnings.filterwarnings("ignore", "The .grad attribute")  # torch, of itself
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
        timeout=timedelta(seconds=patience),
    )  # fmt: skip
    found = {}
    for name in names:
        try:
            module, _, case = name.partition(".")
            found[name] = importlib.import_module(module).CASES[case](rank, Path(folder))
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
            torch.save(found, f"{folder}/rank-{rank}.pt")
            raise
        torch.save(found, f"{folder}/rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
