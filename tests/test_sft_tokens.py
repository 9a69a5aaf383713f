"""The scores of tokens: journaled beside the log, cut off anywhere, merged into one file."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_decoders import batch_of, decoder, losses_of, samples, tokens_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gradmimic import ScoreLog
from gradmimic.errors import UsageError
from gradmimic.run.sft.batch import SftBatch
from gradmimic.run.sft.tokens import Pieces, TokenJournal, merge, token_scores
from gradmimic.scoring import score
from gradmimic.token_losses import TokenLosses
from gradmimic.units import Piece, finished, score_units
from gradmimic.visit import Said

IDS = [f"row {number}" for number in range(10)]


class Words:
    """A tokenizer whose tokens are named after their numbers."""

    def decode(self, ids, **_):
        return "".join(f" t{own}" for own in ids)


class Units:
    """Two samples and a canary a batch, two batches a unit."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return (len(self.batches) + 1) // 2

    def read(self, wanted):
        for number in wanted:
            own = self.batches[2 * number : 2 * number + 2]
            for place, batch in enumerate(own):
                yield Piece(number, batch, place == len(own) - 1)

    def shown(self):
        return self.batches[:1]

    def ended(self, number):
        pass

    def called(self, number):
        return f"unit {number}"


def said(model, batch):
    """Return what a pass says, the last row being a canary."""
    found = tokens_of(model, batch)
    b = len(batch.ids)
    real = TokenLosses(found.losses[:b], found.counted[:b])
    return Said(found.means[:b], tokens=real)


@pytest.fixture(scope="module")
def case():
    rows = samples() * 2
    batches = [
        SftBatch(*batch_of(rows[at : at + 2] + rows[:1]), IDS[at : at + 2], ["row 0"])
        for at in range(0, 10, 2)
    ]
    model, reference = (decoder("llama", seed, "sdpa", torch.float32) for seed in (0, 1))
    return model, reference, batches


def go(folder, case, wanted=range(3), stop_at=None, sizes=None):
    model, reference, batches = case
    journal = TokenJournal(folder / "tokens", Pieces(Words()))
    sizes = [] if sizes is None else sizes

    def add(*told):
        journal.add(*told)
        sizes.append(sum(own.stat().st_size for own in (folder / "tokens").glob("*.arrows")))
        if len(sizes) == stop_at:
            raise KeyboardInterrupt

    with ScoreLog(folder / "log") as log:
        score_units(
            {"model": model}, reference, Units(batches), wanted, said, log,
            ids=lambda batch: batch.ids, params="all", align="none", temperature=1.0,
            engine="auto", on_batch=lambda _samples: None, on_scored=add,
        )  # fmt: skip
    journal.close()


def table_of(folder):
    merged = merge(folder / "tokens", folder / "token_scores.parquet")
    table = pq.read_table(folder / "token_scores.parquet").sort_by("sample_id")
    assert merged == len(table)
    return table


def test_the_mean_of_a_samples_tokens_is_its_score_in_the_log(tmp_path, case):
    go(tmp_path, case)
    table = table_of(tmp_path).to_pylist()
    rows = ScoreLog.read(tmp_path / "log").scan(["sample_id", "score"]).to_pylist()
    logged = {row["sample_id"]: row["score"] for row in rows}
    assert [row["sample_id"] for row in table] == IDS == sorted(logged)
    given = [response for _, response in samples() * 2]
    for row, response in zip(table, given, strict=True):
        assert row["tokens"] == [f" t{own}" for own in response.tolist()]
        np.testing.assert_allclose(np.mean(row["scores"]), logged[row["sample_id"]], rtol=1e-4)
    assert len({round(own, 4) for row in table for own in row["scores"]}) > 10


def test_a_run_that_was_killed_ends_with_every_sample_once(tmp_path, case):
    go(tmp_path / "whole", case)
    killed, sizes = tmp_path / "killed", []
    with pytest.raises(KeyboardInterrupt):
        go(killed, case, stop_at=3, sizes=sizes)  # in the middle of the second unit
    (cut,) = (killed / "tokens").glob("*.arrows")
    whole = cut.read_bytes()
    with ScoreLog(killed / "log") as log:
        assert finished(log, 3) <= {0}
    go(killed, case, wanted=[1, 2])
    expected = table_of(tmp_path / "whole")
    assert table_of(killed).equals(expected)
    assert len(expected) == 10
    for size in range(sizes[1] + 1, len(whole), 40):  # the second unit's part, torn anywhere
        cut.write_bytes(whole[:size])
        assert table_of(killed).equals(expected), size


def test_what_was_scored_again_counts_once(tmp_path, case):
    go(tmp_path, case)
    expected = table_of(tmp_path)
    (tmp_path / "again").mkdir()
    go(tmp_path / "again", case)
    for place, path in enumerate((tmp_path / "again" / "tokens").glob("*.arrows")):
        path.rename(tmp_path / "tokens" / f"00000{place + 2}-00000.arrows")
    assert table_of(tmp_path).equals(expected)


def test_some_samples_are_looked_up(tmp_path, case):
    go(tmp_path, case)
    table_of(tmp_path)
    found = token_scores(tmp_path / "token_scores.parquet", ["row 3", "row 2", "nowhere"])
    assert sorted(found) == ["row 2", "row 3"]
    assert [piece for piece, _ in found["row 2"]] == [f" t{t}" for t in samples()[2][1].tolist()]


def test_samples_are_scored_alike_with_and_without_their_tokens(tmp_path, case):
    model, reference, batches = case
    go(tmp_path, case)
    with ScoreLog(tmp_path / "alone") as log:
        score(
            model, reference, batches, lambda m, batch: losses_of(m, batch)[: len(batch.ids)], log,
            ids=lambda batch: batch.ids, params="all",
        )  # fmt: skip
    both = [
        ScoreLog.read(tmp_path / name).scan(["sample_id", "score"]).sort_by("sample_id")
        for name in ("log", "alone")
    ]
    np.testing.assert_allclose(both[0]["score"], both[1]["score"], rtol=1e-6)


def test_toward_outputs_tokens_have_no_scores(tmp_path, case):
    model, reference, batches = case
    with pytest.raises(UsageError, match="align='outputs', ask for those of samples alone"):
        score_to_outputs(tmp_path, model, reference, batches)


def score_to_outputs(folder, model, reference, batches):
    def flat(own, batch):
        means = own(torch.eye(4)).square()
        return Said(means.sum(1), tokens=TokenLosses(means, means > -1))

    own, better = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    with ScoreLog(folder / "log") as log:
        score(own, better, [0], flat, log, ids=lambda _: range(4), align="outputs")


def test_pieces_keep_their_blanks_and_put_together_are_the_text():
    byte_level = Tokenizer(
        models.BPE({**{c: i for i, c in enumerate("abĠ")}, "Ġa": 3, "Ã": 4, "©": 5}, [("Ġ", "a")])
    )
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    sentence = Tokenizer(models.BPE({"▁a": 0, "b": 1, "▁": 2, "a": 3}, [("▁", "a")]))
    sentence.pre_tokenizer = pre_tokenizers.Metaspace()
    sentence.decoder = decoders.Metaspace()
    for plain, text in ((byte_level, "ab a aé"), (sentence, "ab ab a")):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain)
        ids = tokenizer(text)["input_ids"]
        pieces = Pieces(tokenizer)(ids)
        assert "".join(pieces).replace("��", "é").strip() == text
        assert " a" in pieces


class Opaque(torch.autograd.Function):
    """An operation without a formula for forward mode."""

    @staticmethod
    def forward(x):
        return x.tanh()

    @staticmethod
    def setup_context(ctx, _inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, gradient):
        (output,) = ctx.saved_tensors
        return gradient * (1 - output.square())


class Odd(torch.nn.Module):
    """Scores tokens behind such an operation."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9)

    def forward(self, ids):
        return self.last(Opaque.apply(self.first(ids)))


def test_tokens_have_scores_where_forward_mode_cannot_go(tmp_path):
    torch.manual_seed(0)
    ids = torch.randint(9, (3, 5))
    model, reference = Odd(), Odd()
    heard = []

    def losses(own, batch):
        each = torch.nn.functional.cross_entropy(own(ids).mT, ids.flip(1), reduction="none")
        return Said(each.mean(1), tokens=TokenLosses(each, ids >= 0))

    with ScoreLog(tmp_path) as log:
        score_units(
            {"odd": model}, reference, Units([0]), [0], losses, log, ids=lambda _: range(3),
            params="all", align="none", temperature=1.0, engine="auto",
            on_batch=lambda _samples: None, on_scored=lambda *told: heard.append(told),
        )  # fmt: skip
        (found,) = [own.tokens for _, _, scores in heard for own in scores]
        logged = log.scan(["score"])["score"].to_numpy()
    assert found.shape == (3, 5)
    np.testing.assert_allclose(found.mean(1), logged, rtol=1e-5)
    oracle = []
    weights = dict(reference.named_parameters())
    v = {name: (weights[name] - own).detach() for name, own in model.named_parameters()}
    norm = sum(own.square().sum() for own in v.values()).sqrt()
    for loss in losses(model, 0).tokens.losses.flatten():
        gradients = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
        slopes = [(g * d).sum() for g, d in zip(gradients, v.values(), strict=True)]
        oracle.append(-sum(slopes) / norm)
    torch.testing.assert_close(found.flatten(), torch.stack(oracle))
