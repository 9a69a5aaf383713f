"""The mimicking Trainer on two ranks: what one process gives for the batches of both."""

import math
import os
from functools import partial

import on_ranks
import pytest
import torch
from torch.nn import functional as F
from trainers import MimicTrainer, arguments, better_than, data_of, losses_logged, model_of
from transformers import Trainer

from gradmimic import ScoreLog

pytestmark = pytest.mark.slow  # processes of their own, each of which imports torch

ROWS = 24


def losses_of_own(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits, labels, reduction="none")


def train(rank, folder, kind, *, size=2, mimicking=True, own=None, log=None, **options):
    """Train on batches of four, of all ranks together, two of them a step."""
    if size == 2:
        os.environ.update(  # as torchrun sets them
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1", MASTER_PORT="29500",
        )  # fmt: skip
    model = model_of(kind, still=True)
    args = arguments(
        folder, per_device_train_batch_size=4 // size, gradient_accumulation_steps=2, **(own or {})
    )
    common = {"model": model, "args": args, "train_dataset": data_of(kind, ROWS)}
    if not mimicking:
        trainer = Trainer(**common)
    else:
        log = None if log is None else folder / log
        trainer = MimicTrainer(**common, reference=better_than(model), score_log=log, **options)
    trainer.train()
    if trainer.__dict__.get("_mimicking") and trainer.score_log is not None:
        trainer.score_log.close()
    told = getattr(trainer, "told", [])
    return {
        "weights": {name: w.clone() for name, w in model.state_dict().items()},
        "losses": losses_logged(trainer),
        "told": [{key: micro[key] for key in ("ids", "scores", "weights")} for micro in told],
        "wrapped": type(trainer.model_wrapped).__name__,
    }


WEIGHED = {
    "llama": {"kind": "llama", "temperature": 0.1, "log": "log"},
    "all": {"kind": "llama", "temperature": 0.1, "params": "all"},
    "images": {"kind": "images", "temperature": 0.1},
    "own": {"kind": "classes", "temperature": 0.1, "compute_loss_func": losses_of_own},
}
PLAIN = {
    "classes": {"kind": "classes"},
    "llama": {"kind": "llama", "own": {"average_tokens_across_devices": False}},
}
CASES = {
    **{f"weighed {name}": partial(train, **more) for name, more in WEIGHED.items()},
    **{f"infinite {name}": partial(train, temperature=math.inf, **more)
       for name, more in PLAIN.items()},
    **{f"plain {name}": partial(train, mimicking=False, **more) for name, more in PLAIN.items()},
}  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trainer-ranks"
    base.mkdir(exist_ok=True)
    return on_ranks.run_once(base, [f"test_trainer_ranks.{case}" for case in CASES])


@pytest.mark.parametrize("name", WEIGHED)
def test_two_ranks_give_what_one_process_gives(ran, name, tmp_path):
    both, _ = ran
    first, second = (told[f"test_trainer_ranks.weighed {name}"] for told in both)
    one = train(0, tmp_path, size=1, **WEIGHED[name])
    assert (first["wrapped"], one["wrapped"][:3]) == ("DistributedDataParallel", one["wrapped"][:3])
    assert len(one["told"]) == len(first["told"]) == 6
    for mine, here, there in zip(one["told"], first["told"], second["told"], strict=True):
        for key, value in mine.items():
            torch.testing.assert_close(torch.cat([here[key], there[key]]), value)
        assert mine["weights"].max() - mine["weights"].min() > 0.01
    torch.testing.assert_close(first["weights"], one["weights"])
    torch.testing.assert_close(second["weights"], one["weights"])
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-4)


def test_both_ranks_write_into_one_log(ran):
    _, folder = ran
    rows = ScoreLog.read(folder / "log").scan()
    assert sorted(rows["sample_id"].to_pylist()) == list(range(ROWS))
    assert sorted(set(rows["rank"].to_pylist())) == [0, 1]
    assert set(rows["batch_size"].to_pylist()) == {4}


@pytest.mark.parametrize("name", PLAIN)
def test_an_infinite_temperature_on_two_ranks_is_the_plain_trainer(ran, name):
    for told in ran[0]:
        found, plain = (told[f"test_trainer_ranks.{way} {name}"] for way in ("infinite", "plain"))
        torch.testing.assert_close(found["weights"], plain["weights"], rtol=1e-6, atol=1e-8)
        assert found["losses"] == pytest.approx(plain["losses"], rel=1e-5)
