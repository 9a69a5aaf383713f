import re
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from conftest import ROOT
from lit import Lit, better, loader, noisy, rows, trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from gradmimic import Canaries, ScoreLog, mimic_scores, select
from gradmimic.errors import LogError, LossError, ParameterError, UsageError
from gradmimic.integrations.lightning import MimicCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def fitted(folder, model, *callbacks, data=None, ckpt_path=None, **options):
    run = trainer(folder, *callbacks, **options)
    run.fit(model, loader() if data is None else data, ckpt_path=ckpt_path)
    return run


class Steps(pl.Callback):
    """What each step scored."""

    def __init__(self, callback):
        self.callback, self.seen = callback, []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        mimic = self.callback.mimic
        self.seen.append((batch[-1], mimic.scores, mimic.weights, outputs["loss"]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
    ],
    ids=["plain", "accumulated and clipped", "bf16-mixed", "float64"],
)
def test_an_infinite_temperature_is_plain_lightning(tmp_path, options):
    plain, mimicking = Lit(unreduced=False), Lit()
    fitted(tmp_path, plain, **options)
    fitted(tmp_path, mimicking, MimicCallback(better(), temperature=float("inf")), **options)
    before = Lit().to(plain.head.weight.dtype)
    for name, weight in plain.state_dict().items():
        assert not torch.equal(weight, before.state_dict()[name])
        torch.testing.assert_close(mimicking.state_dict()[name], weight)


@pytest.mark.parametrize("params", ["head", "all"])
def test_a_step_follows_the_weighted_sum_of_the_samples_own_gradients(tmp_path, params):
    model, start, reference = Lit(), Lit().double(), better().double()
    callback = MimicCallback(reference, params=params, temperature=0.3)
    steps = Steps(callback)
    fitted(tmp_path, model, callback, steps, max_steps=1, precision="64-true")

    batch = next(iter(loader()))
    batch[0] = batch[0].double()
    expected = mimic_scores(
        start, reference, batch, lambda m, b: m.losses(b), params=params, engine="oracle"
    )
    ids, scores, weights, loss = steps.seen[0]
    assert ids.tolist() == list(range(8))
    torch.testing.assert_close(scores, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(weights, (expected / 0.3).softmax(0))
    losses = start.losses(batch)
    total = sum(w * one for w, one in zip(weights, losses, strict=True))
    torch.testing.assert_close(loss, total.detach())
    total.backward()
    for name, parameter in start.named_parameters():
        moved = parameter.detach() - 0.1 * parameter.grad
        torch.testing.assert_close(model.state_dict()[name], moved)


def test_scores_under_bf16_are_those_of_float32_up_to_its_rounding(tmp_path):
    seen = []
    for precision in ("32-true", "bf16-mixed"):
        steps = Steps(callback := MimicCallback(better(), params="all"))
        fitted(tmp_path, Lit(), callback, steps, max_steps=1, precision=precision)
        seen.append(steps.seen[0][1].float())
    torch.testing.assert_close(seen[1], seen[0], atol=0.05, rtol=0.05)
    assert not torch.equal(*seen)


def test_the_log_holds_every_visit_and_stage_two_reads_it(tmp_path):
    fitted(tmp_path, Lit(), MimicCallback(better(), log=tmp_path / "log"))
    table = ScoreLog.read(tmp_path / "log").scan()
    assert table["step"].to_pylist() == [step for step in range(10) for _ in range(8)]
    assert table["epoch"].to_pylist() == [0] * 40 + [1] * 40
    assert table["sample_id"].to_pylist() == [*range(40)] * 2
    assert len(select(tmp_path / "log", rule="one_over_b")) == 40


def test_steps_and_epochs_are_logged_under_names_of_their_own(tmp_path):
    callback = MimicCallback(better(), temperature=0.3, log=tmp_path / "log")
    run = fitted(tmp_path, Lit(), callback, max_epochs=1, log_every_n_steps=1)
    table = ScoreLog.read(tmp_path / "log").scan()
    score, weight = (torch.tensor(table[name].to_numpy()) for name in ("score", "weight"))
    last = slice(32, 40)
    told = {name: value.item() for name, value in run.callback_metrics.items()}
    assert told == pytest.approx(
        {
            "mimic/score": score[last].mean().item(),
            "mimic/kept": (weight[last] > 1 / 8).float().mean().item(),
            "mimic/effective_batch_size": 1 / weight[last].square().sum().item(),
            "mimic/score_epoch": score.mean().item(),
            "mimic/kept_epoch": (weight > 1 / 8).float().mean().item(),
            "mimic/effective_batch_size_epoch": 5 / weight.square().sum().item(),
        }
    )


@pytest.mark.parametrize("stop", [4, 6], ids=["within an epoch", "in the next epoch"])
def test_a_resumed_training_ends_like_one_that_was_not_cut_off(tmp_path, stop):
    whole = Lit()
    options = {"temperature": "auto"}
    fitted(tmp_path, whole, MimicCallback(better(), log=tmp_path / "whole", **options))

    class CutOffError(Exception):
        pass

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "saved.ckpt")

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 5 + stop - 3:
                raise CutOffError

    again = MimicCallback(better(), log=tmp_path / "log", **options)
    model = Lit()
    with pytest.raises(CutOffError):
        fitted(tmp_path, model, again, Save())
    assert "training_step" not in vars(model)
    assert ScoreLog.read(tmp_path / "log").scan().num_rows > 40

    resumed = Lit(seed=9)
    again = MimicCallback(better(), log=tmp_path / "log", **options)
    fitted(tmp_path, resumed, again, ckpt_path=tmp_path / "saved.ckpt")
    assert again.mimic.step == 10
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, rtol=0, atol=0)
    tables = [ScoreLog.read(tmp_path / name).scan() for name in ("whole", "log")]
    assert tables[1].sort_by("step").equals(tables[0].sort_by("step"))


def test_fit_goes_on_with_the_same_callback(tmp_path):
    callback = MimicCallback(better(), log=tmp_path / "log")
    run = trainer(tmp_path, callback, max_epochs=1)
    run.fit(model := Lit(), loader())
    run.fit_loop.max_epochs = 2
    run.fit(model, loader())
    assert ScoreLog.read(tmp_path / "log").scan()["step"].to_pylist()[-1] == 9


class Told(Lit):
    """Returns a dictionary, logs, and measures, as people do."""

    def __init__(self, canaries=None):
        super().__init__()
        self.accuracy = MulticlassAccuracy(3)
        self.canaries, self.names = canaries, []

    def training_step(self, batch, batch_idx):
        logits = self(batch["x"])
        losses = F.cross_entropy(logits, batch["y"], reduction="none")
        self.accuracy(logits, batch["y"])
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.log("plain", losses.mean(), on_step=True, on_epoch=True, prog_bar=True)
        names = [f"sample {number}" for number in batch["sample_id"].tolist()]
        told = {"loss": losses, "sample_id": names, "logits": logits.detach()}
        if self.canaries is not None:
            told["canaries"] = self.canaries.labels(logits, batch["y"], names)
        return told

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.names.append(sorted(outputs))


def entries():
    x, y = noisy().tensors
    return [{"x": one, "y": label} for one, label in zip(x, y, strict=True)]


def test_a_step_may_return_a_dictionary_with_ids_and_canaries(tmp_path):
    model = Told(Canaries(1.0))
    data = loader(entries())
    callback = MimicCallback(better(), log=tmp_path / "log")
    run = fitted(tmp_path, model, callback, data=data, max_epochs=1)
    assert model.names == [["logits", "loss"]] * 5
    table = ScoreLog.read(tmp_path / "log").scan()
    assert table.num_rows == 3 * 40  # uniform and confusable canaries of each
    assert set(table["sample_id"].to_pylist()) == {f"sample {n}" for n in range(40)}
    assert 0 < run.callback_metrics["accuracy"] < 1
    assert run.callback_metrics["plain_epoch"] > 0


def test_a_batch_that_is_a_dictionary_names_its_samples(tmp_path):
    class Entries(Lit):
        def losses(self, batch):
            return F.cross_entropy(self(batch["x"]), batch["y"], reduction="none")

    callback = MimicCallback(better(), log=tmp_path / "log")
    fitted(tmp_path, Entries(), callback, data=loader(entries()), max_steps=1)
    assert ScoreLog.read(tmp_path / "log").scan()["sample_id"].to_pylist() == [*range(8)]


def test_validation_and_the_weights_that_are_saved_know_nothing_of_it(tmp_path):
    class Validated(Lit):
        def validation_step(self, batch, batch_idx):
            self.log("val", self.losses(batch).mean())

    model, callback = Validated(), MimicCallback(better(), log=tmp_path / "log")
    run = trainer(tmp_path, callback, max_epochs=1)
    run.fit(model, loader(), DataLoader(rows(16, seed=3), 8))
    x, y = rows(16, seed=3).tensors
    plain = F.cross_entropy(model(x), y).item()
    assert run.callback_metrics["val"].item() == pytest.approx(plain)
    assert weights_of(model).keys() == weights_of(Lit()).keys()
    assert ScoreLog.read(tmp_path / "log").scan().num_rows == 40


def test_a_lightning_checkpoint_is_a_reference(tmp_path):
    good = Lit(unreduced=False)
    run = fitted(tmp_path, good, data=loader(rows()), max_epochs=1)
    run.save_checkpoint(tmp_path / "better.ckpt")
    seen = []
    for reference in (good, tmp_path / "better.ckpt"):
        steps = Steps(callback := MimicCallback(reference))
        fitted(tmp_path, Lit(), callback, steps, max_steps=1)
        seen.append(steps.seen[0][1])
    assert torch.equal(*seen)


@pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`")
def test_a_skipped_batch_is_skipped(tmp_path):
    class Skipping(Lit):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    callback = MimicCallback(better(), log=tmp_path / "log")
    fitted(tmp_path, Skipping(), callback, max_epochs=1)
    assert 8 not in ScoreLog.read(tmp_path / "log").scan()["sample_id"].to_pylist()


def test_the_older_package_takes_the_callback_too(tmp_path):
    class Old(pytorch_lightning.LightningModule):
        __init__, forward, losses = Lit.__init__, Lit.forward, Lit.losses
        training_step, configure_optimizers = Lit.training_step, Lit.configure_optimizers

    def module():
        model = pytorch_lightning.LightningModule.__new__(Old)
        pytorch_lightning.LightningModule.__init__(model)
        template = Lit()
        model.trunk, model.head, model.unreduced, model.lr = (
            template.trunk, template.head, True, 0.1,
        )  # fmt: skip
        return model

    model = module()
    run = pytorch_lightning.Trainer(
        max_epochs=2, logger=False, accelerator="cpu", devices=1, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
        callbacks=[callback := MimicCallback(better(), temperature=0.5)],
    )  # fmt: skip
    run.fit(model, loader())
    expected = Lit()
    fitted(tmp_path, expected, MimicCallback(better(), temperature=0.5))
    assert callback.mimic.step == 10
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight)
    assert "mimic/kept_epoch" in run.callback_metrics


class Manual(Lit):
    automatic_optimization = False


class Closure(Lit):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class Listed(Lit):
    def training_step(self, batch, batch_idx):
        return {"losses": self.losses(batch)}


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (Manual(), UsageError, "optimisation is manual here, so the loss that training_step"),
        (Closure(), UsageError, "LBFGS runs training_step several times a step"),
        (Listed(), UsageError, r"or a dictionary with them as 'loss'; got dict with \['losses'\]"),
        (Lit(unreduced=False), LossError, r"reduction=.none."),
    ],
)
def test_trainings_that_cannot_be_weighed_are_refused(tmp_path, model, error, message):
    with pytest.raises(error, match=message):
        fitted(tmp_path, model, MimicCallback(better()))
    assert "training_step" not in vars(model)


def test_a_log_needs_ids_and_a_folder_of_its_own(tmp_path):
    with pytest.raises(UsageError, match=r"no sample ids came. Wrap the data set: gradmimic.data"):
        fitted(
            tmp_path, Lit(), MimicCallback(better(), log=tmp_path / "log"),
            data=DataLoader(noisy(), 8),
        )  # fmt: skip
    fitted(tmp_path, Lit(), MimicCallback(better()), data=DataLoader(noisy(), 8))  # without a log
    fitted(tmp_path, Lit(), MimicCallback(better(), log=tmp_path / "log"))
    with pytest.raises(LogError, match="holds 1 parts of another training, but this one starts"):
        fitted(tmp_path, Lit(), MimicCallback(better(), log=tmp_path / "log"))


def test_arguments_that_gradmimic_does_not_know_are_told_when_the_training_starts(tmp_path):
    with pytest.raises(ParameterError, match="no-such-layer"):
        fitted(tmp_path, Lit(), MimicCallback(better(), params="no-such-layer.*"))


@pytest.mark.slow  # compiles
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
def test_a_compiled_module_trains_alike(tmp_path):
    plain, model = Lit(), Lit()
    fitted(tmp_path, plain, MimicCallback(better(), temperature=0.5))
    compiled = torch.compile(model, backend="eager")
    fitted(tmp_path, compiled, MimicCallback(better(), temperature=0.5))
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight)


@pytest.mark.slow
def test_the_example_runs():
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "lit.py"], capture_output=True, text=True, check=True
    )
    reference, plain, reweighted = (
        float(share) for share in re.findall(r"^\S+ +([0-9.]+)%$", done.stdout, re.MULTILINE)
    )
    assert reweighted > max(reference, plain) + 1
