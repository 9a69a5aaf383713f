"""A Trainer that was cut off goes on from its checkpoint as if nothing had been."""

import os
from pathlib import Path

import on_ranks
import pytest
import torch
from trainers import MimicTrainer, arguments, better_than, data_of, model_of
from transformers import Trainer, TrainerCallback

from gradmimic import ScoreLog, select
from gradmimic.errors import ConfigError

MORE = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3, "logging_steps": 3}


class CutOffError(Exception):
    """Raised in the middle of a training."""


class CutOff(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise CutOffError


def trainer_of(folder, kind="classes", cut_off=None, **own):
    """14 rows by 2, twice: 14 micro-batches; checkpoints lie within an epoch, and dropout is on."""
    model = model_of(kind)
    options = {"temperature": "auto", "score_log": own.pop("score_log", None)}
    return MimicTrainer(
        model=model,
        args=arguments(folder, **{**MORE, **own}),
        train_dataset=data_of(kind),
        reference=better_than(model),
        callbacks=[] if cut_off is None else [CutOff(cut_off)],
        **options,
    )


def outcome(trainer):
    entries = [{k: v for k, v in row.items() if "runtime" not in k and "per_second" not in k}
               for row in trainer.state.log_history]  # fmt: skip
    log = trainer.score_log
    run = ScoreLog.read(log.path).run
    del run["created"]
    return dict(trainer.model.state_dict()), entries, log.scan(), run


def same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    assert found[1][:-1] == expected[1][:-1]  # the last entry sums up, and is of one session
    assert found[2].equals(expected[2])
    assert found[3] == expected[3]


@pytest.mark.parametrize(
    ("kind", "accumulate", "stop"),
    [("classes", 1, 8), pytest.param("llama", 2, 5, marks=pytest.mark.slow)],
)
def test_a_run_that_is_cut_off_goes_on_exactly(tmp_path, kind, accumulate, stop):
    own = {"gradient_accumulation_steps": accumulate}
    with ScoreLog(tmp_path / "whole" / "log") as log:
        whole = trainer_of(tmp_path / "whole", kind, score_log=log, **own)
        whole.train()
        expected = outcome(whole)
    folder = tmp_path / "cut"
    with pytest.raises(CutOffError), ScoreLog(folder / "log", rows_per_part=6) as log:
        trainer_of(folder, kind, cut_off=stop, score_log=log, **own).train()
    assert ScoreLog.read(log.path).scan().num_rows > 2 * accumulate * 3  # more than there was then
    with ScoreLog(folder / "log") as log:
        again = trainer_of(folder, kind, score_log=log, **own)
        again.train(resume_from_checkpoint=True)
        assert len(again.told) < len(whole.told)
        same(outcome(again), expected)


def test_a_run_resumes_from_any_of_its_checkpoints_in_the_same_program(tmp_path):
    with ScoreLog(tmp_path / "log") as log:
        trainer = trainer_of(tmp_path, score_log=log)
        trainer.train()
        expected = outcome(trainer)
        for step in (6, 3):
            trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
            same(outcome(trainer), expected)
    assert len(select(tmp_path / "log")) == 14


def test_a_checkpoint_holds_plain_data_only(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    state = torch.load(tmp_path / "checkpoint-3" / "gradmimic.pt", weights_only=True)
    assert (state["mimic"]["step"], state["events"]) == (3, 0)


def test_a_plain_trainers_checkpoint_is_taken_up_where_there_is_nothing_to_cut(tmp_path):
    args = arguments(tmp_path, **MORE)
    Trainer(model=model_of("classes"), args=args, train_dataset=data_of("classes")).train()
    with ScoreLog(tmp_path / "log") as log:
        trainer = trainer_of(tmp_path, score_log=log)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
        assert log.scan(["step"])["step"].to_pylist() == [0, 0, 1, 1]  # of the last two batches
        with pytest.raises(ConfigError, match=r"checkpoint-12 holds no gradmimic\.pt.*to another"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))


def on_two(rank, folder):
    """Train, be cut off, resume; what each rank logged, and what the Trainer did."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    told = {}
    for name, stops in (("whole", [None]), ("cut", [5, None])):
        for stop in stops:
            log = ScoreLog(folder / name, rows_per_part=3)
            trainer = trainer_of(folder / f"{name}-run", cut_off=stop, score_log=log)
            try:
                trainer.train(resume_from_checkpoint=name == "cut" and stop is None)
            except CutOffError:
                log.close()
        log.flush()
        torch.distributed.barrier()
        entries = [row["mimic/score"] for row in trainer.state.log_history if "loss" in row]
        effective = [
            row["mimic/effective_batch_size"] for row in trainer.state.log_history if "loss" in row
        ]
        told[name] = {
            "weights": dict(trainer.model.state_dict()),
            "scores": [t["scores"] for t in trainer.told],
            "logged": entries,
            "effective": effective,
        }
        log.close()
        torch.distributed.barrier()
    return told


CASES = {"on two": on_two}


@pytest.mark.slow
def test_ranks_resume_each_with_its_own_rows(tmp_path):
    (zero, one), codes, output = on_ranks.run_on_two(tmp_path, ["test_trainer_resume.on two"])
    assert codes == [0, 0], "\n".join(output)
    zero, one = (told["test_trainer_resume.on two"] for told in (zero, one))
    torch.testing.assert_close(zero["cut"]["weights"], zero["whole"]["weights"], rtol=0, atol=0)
    torch.testing.assert_close(one["cut"]["weights"], zero["cut"]["weights"])
    tables = {}
    for name in ("whole", "cut"):
        tables[name] = ScoreLog.read(Path(tmp_path) / name).scan()
        assert zero[name]["logged"] == pytest.approx(one[name]["logged"])
        assert all(1 < n < 4 for n in zero[name]["effective"])
        assert set(tables[name]["batch_size"].to_pylist()) == {4}
        assert set(tables[name]["epoch"].to_pylist()) == {None}  # 14 rows by 4 are padded with two
        assert len(select(Path(tmp_path) / name)) == 14
    assert tables["cut"].equals(tables["whole"])
    means = [
        torch.cat([a, b]).mean()
        for a, b in zip(zero["whole"]["scores"], one["whole"]["scores"], strict=True)
    ]
    by_three = [float(sum(means[i : i + 3]) / 3) for i in (0, 3)]
    assert zero["whole"]["logged"] == pytest.approx(by_three)
