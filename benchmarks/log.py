"""What logging costs: time per append with its share of the flush, against a plain step.

    cost = (k appends and one flush) / (k plain training steps),    k batches fill one part

Run: python benchmarks/log.py
"""

import itertools
import shutil
import tempfile
from collections.abc import Callable

import torch
from harness import interleave, save
from torch import nn

from gradmimic.log import ScoreLog

ROWS_PER_PART = 65_536


def plain_step(model: nn.Module, inputs: torch.Tensor) -> Callable[[], object]:
    """Return one training step without anything of ours."""
    labels = torch.randint(10, (len(inputs),))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    return step


def repeat(function: Callable[[], object], times: int) -> Callable[[], object]:
    """Return a function that calls another one several times."""
    return lambda: [function() for _ in range(times)]


def append_batches(log: ScoreLog, size: int) -> Callable[[], object]:
    """Return an append of one batch of int ids, given as training has them: CPU tensors."""
    ids = torch.randperm(10 * size)[:size]
    scores, losses = torch.randn(size), torch.rand(size)
    weights = scores.softmax(0)
    steps = itertools.count()

    def append() -> None:
        log.append(ids, scores, weights, losses, epoch=0, step=next(steps), direction_norm=1.0)

    return append


def models() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Return models from tiny to small; a real one is slower, so that logging costs it less."""
    mlp = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    wide = nn.Sequential(nn.Linear(1280, 1024), nn.ReLU(), nn.Linear(1024, 10))
    cnn = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    return {
        "MLP 784-256-10": (mlp, (784,)),
        "MLP 1280-1024-10": (wide, (1280,)),
        "CNN 32x32, 2 layers": (cnn, (3, 32, 32)),
    }


def measure(size: int) -> list[dict[str, object]]:
    """Measure one batch size."""
    rows: list[dict[str, object]] = []
    batches = ROWS_PER_PART // size
    for name, (model, shape) in models().items():
        folder = tempfile.mkdtemp()
        log = ScoreLog(folder, rows_per_part=ROWS_PER_PART)
        append = append_batches(log, size)
        step = plain_step(model, torch.randn(size, *shape))
        # One turn appends exactly one part, so its flush (with fsync) is in every turn once.
        steps = 20
        timings = interleave(
            {"step": repeat(step, steps), "part": repeat(append, batches)}, turns=9, warmup=2
        )
        log.close()
        shutil.rmtree(folder)
        per_append = timings["part"].seconds / batches
        ratio = timings["part"].ratio * steps / batches
        rows.append(
            {
                "model": name,
                "batch_size": size,
                "step_us": timings["step"].seconds / steps * 1e6,
                "append_us": per_append * 1e6,
                "cost": ratio,
            }
        )
    return rows


def main() -> None:
    """Print the table and save it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = measure(32) + measure(128)
    print(f"{'model':22}{'batch':>6}{'step, us':>12}{'append + flush, us':>20}{'cost':>9}")
    for row in rows:
        print(
            f"{row['model']:22}{row['batch_size']:>6}{row['step_us']:>12.0f}"
            f"{row['append_us']:>20.1f}{row['cost']:>9.2%}"
        )
    print(f"saved to {save('log', rows, 'python benchmarks/log.py')}")


if __name__ == "__main__":
    main()
