"""What of the weights the Trainer's own log shows, and that nothing else in it is touched."""

import math

import pytest
import torch
from trainers import MimicTrainer, arguments, better_than, data_of, model_of
from transformers import Trainer, TrainerCallback

from gradmimic import ScoreLog
from gradmimic.errors import LogError, UsageError
from gradmimic.integrations.huggingface import mimic_trainer
from gradmimic.integrations.trainer_numbers import Numbers

NAMES = ("mimic/score", "mimic/kept", "mimic/effective_batch_size")


class Heard(TrainerCallback):
    """Remembers what TensorBoard and its like are told."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def trainer_of(folder, kind="classes", batch=4, **own):
    model, heard = model_of(kind), Heard()
    options = {"temperature": own.pop("temperature", 0.05), "score_log": own.pop("score_log", None)}
    trainer = MimicTrainer(
        model=model,
        args=arguments(folder, per_device_train_batch_size=batch, **own),
        train_dataset=data_of(kind),
        eval_dataset=data_of(kind, 4),
        reference=better_than(model),
        callbacks=[heard],
        **options,
    )
    return trainer, heard.logs


def numbers_of(told):
    scores = torch.cat([batch["scores"] for batch in told])
    kept = torch.cat([batch["weights"] > 1 / len(batch["weights"]) for batch in told])
    spread = torch.stack([batch["weights"].square().sum() for batch in told])
    return [scores.mean(), kept.float().mean(), 1 / spread.mean()]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_entry_of_the_log_tells_of_the_steps_since_the_last_one(tmp_path, accumulate):
    own = {"logging_steps": 2, "gradient_accumulation_steps": accumulate, "num_train_epochs": 2}
    trainer, heard = trainer_of(tmp_path, **own)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 4 // accumulate
    for i, row in enumerate(rows):
        expected = numbers_of(trainer.told[2 * accumulate * i : 2 * accumulate * (i + 1)])
        assert [row[name] for name in NAMES] == pytest.approx([float(n) for n in expected], 1e-5)
        assert 0 < row["mimic/kept"] < 1 <= row["mimic/effective_batch_size"] < 4
    told = [{k: v for k, v in row.items() if k != "step"} for row in trainer.state.log_history]
    assert told == heard


def test_evaluation_and_summary_are_logged_as_ever(tmp_path):
    trainer, heard = trainer_of(tmp_path, eval_strategy="steps", eval_steps=2)
    trainer.train()
    other = [row for row in heard if "loss" not in row]
    assert any("eval_loss" in row for row in other)
    assert any("train_loss" in row for row in other)
    assert not [name for row in other for name in row if "mimic" in name]
    trainer.log({"mine": 1.0})
    assert not set(NAMES) & set(heard[-1])


def test_equal_weights_keep_all_and_count_as_many_as_there_are(tmp_path):
    trainer, heard = trainer_of(tmp_path, batch=7, temperature=math.inf)
    trainer.train()
    assert [heard[0][name] for name in NAMES[1:]] == pytest.approx([1, 7])


def test_a_trainer_that_was_there_already_logs_them_too(tmp_path):
    model = model_of("classes")
    trainer = Trainer(model=model, args=arguments(tmp_path), train_dataset=data_of("classes"))
    assert mimic_trainer(trainer, reference=better_than(model), temperature=0.1) is trainer
    trainer.train()
    assert set(NAMES) < set(trainer.state.log_history[0])


def test_the_score_log_holds_what_was_seen(tmp_path):
    log = ScoreLog(tmp_path / "log")
    trainer, _ = trainer_of(tmp_path, score_log=log, num_train_epochs=2)
    trainer.train()
    rows = log.scan(["sample_id", "epoch", "step", "score", "weight", "batch_size"])
    assert rows["sample_id"].to_pylist() == torch.cat([t["ids"] for t in trainer.told]).tolist()
    for name, told in (("score", "scores"), ("weight", "weights")):
        expected = torch.cat([t[told] for t in trainer.told]).tolist()
        assert rows[name].to_pylist() == pytest.approx(expected)
    assert rows["epoch"].to_pylist() == [0] * 14 + [1] * 14
    assert rows["step"].to_pylist()[:5] == [0] * 4 + [1]
    assert rows["batch_size"].to_pylist()[-3:] == [4, 2, 2]
    log.close()


def test_numbers_are_of_what_is_new():
    numbers = Numbers()
    assert numbers.read() == {}
    numbers.see(None, None, None)  # the first batch, where the head was elsewhere
    assert numbers.read() == {}
    scores, weights = torch.tensor([1.0, 3.0]), torch.tensor([0.25, 0.75])
    numbers.see(scores, weights, 4)  # two of four: the others are on another rank
    numbers.see(scores, weights, 4)  # nothing was weighed since
    assert numbers.read() == pytest.approx(
        {"mimic/score": 2.0, "mimic/kept": 1.0, "mimic/effective_batch_size": 1.6}
    )
    assert numbers.read() == {}


def test_scores_go_back_to_the_data_that_were_trained_on(tmp_path):
    trainer, _ = trainer_of(tmp_path, score_log=tmp_path / "log", num_train_epochs=2)
    with pytest.raises(LogError, match="is empty. Train with this log first"):
        trainer.add_scores()
    trainer.train()
    scored = trainer.add_scores()
    assert scored.column_names[-3:] == ["mimic_score", "mimic_kept", "mimic_visits"]
    ids = torch.cat([told["ids"] for told in trainer.told])
    scores = torch.cat([told["scores"] for told in trainer.told])
    for i, row in enumerate(scored):
        assert row["input_ids"] == data_of("classes")[i]["input_ids"]
        assert row["mimic_visits"] == 2
        assert row["mimic_score"] == pytest.approx(scores[ids == i].mean().item(), abs=1e-6)
    fewer = trainer.add_scores(data_of("classes").add_column("sample_id", list(range(14)))).select(
        [5]
    )
    assert fewer["mimic_score"][:] == scored["mimic_score"][5:6]
    trainer.score_log.close()
    bare, _ = trainer_of(tmp_path)
    with pytest.raises(UsageError, match="No scores were logged. Pass score_log="):
        bare.add_scores()
