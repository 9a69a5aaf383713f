"""Ranks with fewer batches than others: ``with Join([mimic, ddp_model]):``, torch's own way.

A rank that has run out answers for the batches of the others: DDP's collectives by DDP's hook, and
ours, which lie between DDP's forward and backward ones, from a thread beside it, on a group of our
own. It has no samples, but learns from the canaries and scores of the others, so that all ranks go
on alike in the next epoch.
"""

from collections.abc import Callable
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join, Joinable, JoinHook

from gradmimic.errors import UsageError


class Joining(Joinable):
    """What ``Join`` asks of one that takes part in collectives.

    Args:
        shadow: does what a batch of no samples does; may run in another thread.
        refusal: why this training cannot go on without batches; None where it can.
    """

    def __init__(self, shadow: Callable[[], None], refusal: Callable[[], str | None]) -> None:
        super().__init__()
        self._shadow, self._refusal = shadow, refusal

    def _begin(self) -> None:
        """Say that this rank has one more batch, before any collective of that batch."""
        config = self._join_config
        if not config.enable:
            return
        if not config.is_first_joinable:
            raise UsageError(
                "Join lists the model before GradMimic, whose collectives would then wait for each "
                "other forever. Expected Join([mimic, ddp_model])."
            )
        Join.notify_join_context(self)

    def join_hook(self, **options: Any) -> JoinHook:
        """Return the hook for one ``with Join(…):`` block.

        Raises:
            UsageError: this training cannot go on without batches, or gradients would be divided
                by the number of ranks that are left.
        """
        refusal = self._refusal()
        if options.get("divide_by_initial_world_size", True) is False:
            refusal = (
                "divide_by_initial_world_size=False: GradMimic's losses expect gradients that are "
                "divided by the number of all ranks. Leave it True."
            )
        if refusal is not None:
            raise UsageError(f"Join cannot be used here: {refusal}")
        return _Shadow(self._shadow)

    @property
    def join_device(self) -> torch.device:
        """Where Join's own collectives run."""
        backend = dist.get_backend()
        return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else _CPU

    @property
    def join_process_group(self) -> Any:
        """All ranks."""
        return dist.group.WORLD


class _Shadow(JoinHook):
    def __init__(self, shadow: Callable[[], None]) -> None:
        self._shadow = shadow
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def main_hook(self) -> None:
        self._wait()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def post_hook(self, is_last_joiner: bool) -> None:
        self._wait()

    def _run(self) -> None:
        try:
            self._shadow()
        except BaseException as error:  # raised again in the thread that waits
            self._error = error

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error


_CPU = torch.device("cpu")
