"""Checking a run's reference before the run: a short plain training, then ``check_reference``.

    read → the reference → a few plain steps → scores of samples and canaries → verdict

At its initial weights a model's features tell little, and every reference would seem worse than it
is; hence the steps. Nothing is written.
"""

from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.canaries import Canaries, CanaryLosses
from gradmimic.check import MOST, check_reference
from gradmimic.errors import ConfigError
from gradmimic.measure import check_losses
from gradmimic.run.config import RunConfig
from gradmimic.run.inputs import load_inputs
from gradmimic.run.prepare import Progress, prepare
from gradmimic.run.train import Rows, batches
from gradmimic.verdict import ReferenceCheck

STEPS = 300  # or one pass, where that is shorter: later ones may overtake the reference


@dataclass(frozen=True)
class Checked:
    """What the check of a run's reference came to.

    Args:
        check: the verdict, with every number.
        steps: plain steps before it.
        configured: the alignment that the configuration asks for.
    """

    check: ReferenceCheck
    steps: int
    configured: str

    @property
    def notes(self) -> list[str]:
        """What the reader should do."""
        own = self.check.alignments.get("none" if self.configured == "shift" else self.configured)
        if self.check.best is None or self.configured == "auto" or (own and own.usable):
            return []
        return [
            f"This configuration comes to align: {self.configured}. Give align: {self.check.best}."
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        own = {"steps": self.steps, "configured": self.configured, "notes": self.notes}
        return {**self.check.as_dict(), **own}


def check_run(
    config: RunConfig,
    *,
    steps: int | None = None,
    progress: Progress = lambda _what, _steps: lambda: None,
) -> Checked:
    """Check whether a run's reference can tell good from bad samples, as it is or aligned.

    Args:
        config: the run's configuration.
        steps: plain steps before the check, 0 or more; left out, one pass over the data, and 300
            at most.
        progress: told of every training and step.

    Raises:
        ConfigError: the number of steps is below 0.
        DataError: the input cannot be read.
        ReferenceMismatchError: the reference does not fit the model.
        LossError: a loss became NaN or infinite.
    """
    if steps is not None and steps < 0:
        raise ConfigError(f"steps must be at least 0, got {steps}.")
    inputs = load_inputs(replace(config, test=None, test_labels=None, true_labels=None))
    ready = prepare(config, inputs, progress)
    by_outputs = config.gives_outputs_only or config.aligned in ("transport", "outputs")
    given = ready.said if ready.said is not None and by_outputs else ready.weights
    _, part = ready.start()
    data = ready.encode(ready.data)
    if steps is None:
        steps = min(STEPS, ceil(len(data) / config.batch_size))
    order = batches(len(data), config.batch_size, steps, config.seed)
    _warm_up(part, data, [rows for _, rows in islice(order, steps)], config, progress)

    ids = inputs.train.ids
    canaries = Canaries(rate=1.0, seed=config.seed)

    def losses(model: nn.Module, rows: Tensor) -> tuple[Tensor, CanaryLosses]:
        z, y = model(data.inputs[rows]), data.labels[rows]
        drawn = canaries.labels(z, y, ids[rows.cpu().numpy()])
        return F.cross_entropy(z, y, reduction="none"), drawn

    some = torch.randperm(len(data), generator=torch.Generator().manual_seed(config.seed))[:MOST]
    check = check_reference(
        part,
        given,
        some.split(config.batch_size),
        losses,
        params=ready.params,
        ids=lambda rows: ids[rows.cpu().numpy()],
    )
    return Checked(check, steps, config.aligned)


def _warm_up(
    part: nn.Module, data: Rows, order: list[Tensor], config: RunConfig, progress: Progress
) -> None:
    """Take some plain steps."""
    on_step = progress("warm-up", len(order))
    optimizer = torch.optim.AdamW(part.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    part.train()
    for rows in order:
        losses = F.cross_entropy(part(data.inputs[rows]), data.labels[rows], reduction="none")
        optimizer.zero_grad()
        check_losses(losses).mean().backward()
        optimizer.step()
        on_step()
