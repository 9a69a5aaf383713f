"""A step of a Trainer as ``train`` takes it: a batch of its own loader, the optimizer's step."""

from collections.abc import Iterator
from typing import Any

from gradmimic.integrations.huggingface import mimic_trainer


class Step:
    """One step of a Trainer, plain or mimicking.

    Args:
        trainer: it.
        reference: the mimicking one's; None for a plain one.
        folder: where the scores are logged.
    """

    def __init__(self, trainer: Any, reference: Any, folder: str) -> None:
        self.trainer, model = trainer, trainer.model
        if reference is not None:
            mimic_trainer(trainer, reference, score_log=f"{folder}/scores")
        self.loader = trainer.get_train_dataloader()
        trainer.create_optimizer()
        self.model, self.optimizer = trainer.accelerator.prepare(model, trainer.optimizer)
        self.batches = self.forever()

    def forever(self) -> Iterator[Any]:
        while True:
            yield from self.loader

    def __call__(self) -> None:
        (batch,), items = self.trainer.get_batch_samples(self.batches, 1, self.trainer.args.device)
        self.trainer.training_step(self.model, batch, items)
        self.optimizer.step()
        self.model.zero_grad()
