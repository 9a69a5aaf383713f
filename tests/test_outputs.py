import errno
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gradmimic.atomic
from gradmimic.errors import DataError, ParameterError
from gradmimic.outputs import Outputs, cache_outputs

INTS, NAMES = [7, -3, 2**62], ["a/1.png", "ü", ""]
VALUES = [[1.0, -2.5], [0.25, 65504.0], [0.0, -65504.0]]


def softmax(z):
    return torch.tensor(z).softmax(1)


@pytest.mark.parametrize("ids", [INTS, NAMES])
def test_lookup_gives_the_rows_asked_for_and_says_what_is_unknown(ids):
    outputs = Outputs(ids, VALUES, source="me")
    other = 8 if ids is INTS else "a/2.png"
    rows, known = outputs.of([ids[2], other, ids[0], ids[2]])
    assert rows.dtype == torch.float32
    assert rows.tolist() == [VALUES[2], [0.0, 0.0], VALUES[0], VALUES[2]]
    assert known.tolist() == [True, False, True, True]
    assert (len(outputs), outputs.width, outputs.kind, outputs.source) == (3, 2, "logits", "me")
    assert list(outputs.ids) == ids
    rows, known = outputs.of([])
    assert (rows.shape, known.shape) == ((0, 2), (0,))


def test_ids_come_in_any_container():
    outputs = Outputs(torch.tensor([4, 9]), torch.tensor(VALUES[:2]))
    for asked in ([9], (9,), torch.tensor([9]), np.array([9]), np.array([9], np.uint8)):
        assert outputs.of(asked)[0].tolist() == [VALUES[1]]
    names = Outputs(np.array(["x", "y"]), np.array(VALUES[:2]))
    for named in (["y"], np.array(["y"])):
        assert names.of(named)[0].tolist() == [VALUES[1]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_ids_and_values_come_from_a_gpu():
    outputs = Outputs(torch.tensor([4, 9]).cuda(), torch.tensor(VALUES[:2]).cuda())
    rows, known = outputs.of(torch.tensor([9, 1]).cuda())
    assert (rows.device.type, known.tolist()) == ("cpu", [True, False])
    cached = cache_outputs(nn.Linear(2, 3).cuda(), [([1], torch.ones(1, 2))])
    assert cached.of([1])[0].shape == (1, 3)


EDGES = [-(2**63), 2**63 - 1, 0, 1]


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9), min_size=1, unique=True),
    st.lists(st.integers(-12, 12) | st.sampled_from(EDGES)),
)
def test_integers_are_found_near_and_far(ids, asked):
    outputs = Outputs(ids, np.arange(len(ids))[:, None] % 2000)
    asked += ids
    rows, known = outputs.of(asked)
    where = {sample_id: row % 2000 for row, sample_id in enumerate(ids)}
    assert rows[:, 0].tolist() == [where.get(sample_id, 0) for sample_id in asked]
    assert known.tolist() == [sample_id in where for sample_id in asked]


def test_probabilities_become_centred_logarithms():
    logits = torch.tensor([[3.0, 1.0, -4.0], [0.0, 0.0, 0.0]])
    outputs = Outputs([1, 2], logits.softmax(1), kind="probabilities")
    assert outputs.kind == "logits"
    z, _ = outputs.of([1, 2])
    torch.testing.assert_close(z, logits - logits.mean(1, keepdim=True), atol=4e-3, rtol=0)


def test_a_probability_of_zero_stays_finite():
    z, _ = Outputs([0], [[1.0, 0.0, 0.0]], kind="probabilities").of([0])
    p = z.softmax(1)[0]
    assert z.isfinite().all()
    assert p[0] > 0.9999
    assert 0 < p[1] < 1e-7


@pytest.mark.parametrize(
    ("p", "message"),
    [
        ([[0.5, 0.5], [0.6, 0.5]], "probabilities of sample 'b' .* sum to 1.1; .*kind='logits'"),
        ([[0.5, 0.5], [1.2, -0.2]], "probabilities of sample 'b' range from -0.2 to 1.2"),
        ([[0.5, 0.5], [float("nan"), 1.0]], "probabilities of sample 'b'"),
        ([[1.0], [1.0]], "two classes or more"),
    ],
)
def test_what_are_no_probabilities(p, message):
    with pytest.raises(DataError, match=message):
        Outputs(["a", "b"], p, kind="probabilities")
    assert Outputs([0], [[0.504, 0.504]], kind="probabilities").width == 2  # rounding is fine


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 65520.0, -1e9, 1e300])
def test_values_that_float16_cannot_hold_name_their_sample(value):
    with pytest.raises(DataError, match=r"outputs of sample 'b' hold .* in column 1; .*65504"):
        Outputs(["a", "b"], np.array([[0.0, 0.0], [0.0, value]]))
    with pytest.raises(DataError, match=r"sample 12 hold"):
        cache_outputs(
            lambda x: x,
            [([11], torch.ones(1, 1)), ([12], torch.tensor([[value]], dtype=torch.float64))],
        )


@pytest.mark.parametrize(
    ("ids", "values", "message"),
    [
        ([3, 1, 3], VALUES, r"sample id 3 stands in rows 0 and 2"),
        ([3, 10**9, 3], VALUES, r"sample id 3 stands in rows 0 and 2"),
        (["a", "b", "b"], VALUES, r"sample id 'b' stands in rows 1 and 2"),
        ([3, "a", 4], VALUES, "mix integers and strings"),
        ([0.5, 1.0, 2.0], VALUES, "must be ints or strings"),
        ([1, 2], VALUES, r"each of the 2 sample ids, got shape \[3, 2\]"),
        ([1, 2, 3], [1.0, 2.0, 3.0], r"expected numbers \[n, K\], got shape \[3\]"),
        ([1, 2], [["a"], ["b"]], r"expected numbers \[n, K\], got shape .* of <U1"),
        ([1, 2], [[1.0], [1.0, 2.0]], "rows of several lengths"),
        ([], np.zeros((0, 2)), "one sample or more, but memory gives none"),
        ([1], np.zeros((1, 0)), "one sample or more"),
    ],
)
def test_what_cannot_be_kept(ids, values, message):
    with pytest.raises(DataError, match=message):
        Outputs(ids, values)


def test_an_unknown_kind():
    with pytest.raises(ParameterError, match="kind='probs' is unknown; expected logits or"):
        Outputs([1], [[1.0]], kind="probs")
    with pytest.raises(ParameterError, match="kind='probs' is unknown"):
        cache_outputs(nn.Identity(), [], kind="probs")


def test_ids_of_the_other_kind_are_an_error_not_all_missing():
    with pytest.raises(
        DataError, match="integer ids such as 7, but were asked for string ids .*'7"
    ):
        Outputs(INTS, VALUES).of(["7"])
    with pytest.raises(DataError, match="string ids such as 'a/1.png', .* integer ids such as 0"):
        Outputs(NAMES, VALUES).of(torch.arange(2))


def test_what_is_kept_is_a_copy():
    values = torch.ones(1, 2, dtype=torch.float16)
    outputs = Outputs([0], values)
    values.zero_()
    assert outputs.of([0])[0].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("ids", [INTS, NAMES])
@pytest.mark.parametrize("kind", ["logits", "embeddings"])
def test_a_file_gives_back_what_was_written(tmp_path, ids, kind):
    Outputs(ids, VALUES, kind=kind, source="Ω").write(tmp_path / "o.parquet")
    read = Outputs.read(str(tmp_path / "o.parquet"))
    assert (list(read.ids), read.kind, read.source) == (ids, kind, "Ω")
    assert read.of(ids)[0].tolist() == VALUES
    schema = pq.read_schema(tmp_path / "o.parquet")
    assert schema.names == ["sample_id", "outputs"]
    assert schema.field("sample_id").type == (pa.int64() if ids is INTS else pa.string())
    assert schema.field("outputs").type.list_size == 2
    assert schema.field("outputs").type.value_type == pa.float16()


def test_probabilities_are_logits_in_the_file(tmp_path):
    path = tmp_path / "o.parquet"
    cached = cache_outputs(softmax, [([1], [[2.0, 0.0]])], path, kind="probabilities")
    for outputs in (cached, Outputs.read(path)):
        assert outputs.kind == "logits"
        torch.testing.assert_close(
            outputs.of([1])[0], torch.tensor([[1.0, -1.0]]), atol=1e-3, rtol=0
        )


def test_reading_says_what_is_wrong_with_a_file(tmp_path):
    good, bad = tmp_path / "good.parquet", tmp_path / "bad.parquet"
    Outputs(INTS, VALUES).write(good)
    whole = good.read_bytes()

    def refused(message):
        with pytest.raises(DataError, match=message):
            Outputs.read(bad)

    refused(r"there is no table of outputs at .*bad\.parquet")
    for content in (b"", whole[:-9], whole[: len(whole) // 2], b"{}" * 50):
        bad.write_bytes(content)
        refused("bad.parquet is damaged, or no Parquet file")
    chunk = pq.read_metadata(good).row_group(0).column(1)
    last = chunk.data_page_offset + chunk.total_compressed_size - 1
    bad.write_bytes(whole[:last] + bytes([whole[last] ^ 1]) + whole[last + 1 :])
    refused("damaged")  # the checksum of a page does not agree

    def rewritten(table, **notes):
        old = pq.read_schema(good).metadata
        new = {f"gradmimic.outputs.{k}".encode(): v.encode() for k, v in notes.items()}
        pq.write_table(table.replace_schema_metadata({**old, **new}), bad)

    table = pq.read_table(good)
    pq.write_table(table.replace_schema_metadata(None), bad)
    refused(r"not one of outputs that gradmimic wrote.*gradmimic cache --table .*bad.parquet")
    rewritten(table, version="9")
    refused("outputs format version 9, but this gradmimic reads version 1")
    rewritten(table, kind="probabilities")
    refused("other columns than a table of outputs")
    rewritten(table.select(["sample_id"]))
    refused(r"other columns than a table of outputs: sample_id \(int64\)")
    names = pa.chunked_array([["a", "b", "c"]], pa.large_string())
    rewritten(table.set_column(0, "sample_id", names))
    refused(r"other columns than a table of outputs: sample_id \(large_string\)")
    rewritten(pa.concat_tables([table, table]))
    refused("bad.parquet: the sample id -3 stands in rows 1 and 4")
    rewritten(table[:0])
    refused("bad.parquet: .* gives none")


class Odd(nn.Module):
    """Says in which mode it runs."""

    def __init__(self):
        super().__init__()
        self.drop, self.frozen = nn.Dropout(), nn.BatchNorm1d(2).eval()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x):
        assert not torch.is_grad_enabled()
        assert not self.training
        assert not self.drop.training
        return x * self.weight


@pytest.mark.parametrize("path", [None, "o.parquet"])
def test_a_module_is_run_once_over_all_batches(tmp_path, path):
    model = Odd()
    batches = [([5, 3], torch.tensor([[1.0, 2.0], [3.0, 4.0]])), ([], torch.empty(0, 2)),
               (np.array([9]), torch.ones(1, 2))]  # fmt: skip
    outputs = cache_outputs(model, iter(batches), path and tmp_path / path, source="it")
    assert outputs.of([3, 9, 5])[0].tolist() == [[3.0, 4.0], [1.0, 1.0], [1.0, 2.0]]
    assert (outputs.ids.tolist(), outputs.source) == ([5, 3, 9], "it")
    assert (model.training, model.drop.training, model.frozen.training) == (True, True, False)
    assert torch.is_grad_enabled()
    assert [*tmp_path.iterdir()] == ([tmp_path / path] if path else [])


@pytest.mark.parametrize("path", [None, "o.parquet"])
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "function stub gives none"),
        (
            [([1], torch.ones(1, 2)), ([2, 1], torch.ones(2, 2))],
            "id 1 comes a second time in batch 1",
        ),
        ([(["a", "a"], torch.ones(2, 2))], "id 'a' comes a second time in batch 0"),
        ([([1], torch.ones(1, 2)), (["a"], torch.ones(1, 2))], "batch 1 has string sample ids"),
        ([([1], torch.ones(1, 2)), ([2], torch.ones(1, 3))], r"K = 2 as in batch 0, got \[1, 3\]"),
        ([([1, 2], torch.ones(1, 2))], r"tensor \[2, K\] for the 2 ids of batch 0, got \[1, 2\]"),
        ([([1], torch.ones(1, 2, 2))], r"got \[1, 2, 2\]"),
        ([([1], {"logits": 1})], r"got dict. Pass a function that does, such as lambda"),
    ],
)
def test_what_a_reference_may_not_return(tmp_path, path, batches, message):
    def stub(x):
        return x

    with pytest.raises(DataError, match=message):
        cache_outputs(stub, batches, path and tmp_path / path)
    assert not [*tmp_path.iterdir()]


def test_modes_are_restored_and_nothing_is_left_after_an_error(tmp_path):
    model = Odd()

    def batches():
        yield [0], torch.ones(1, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_outputs(model, batches(), tmp_path / "o.parquet")
    assert (model.training, model.frozen.training) == (True, False)
    assert not [*tmp_path.iterdir()]


def test_a_full_disk_leaves_what_stood_there(tmp_path, monkeypatch):
    path = tmp_path / "o.parquet"
    Outputs([1], [[1.0]], source="old").write(path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gradmimic.atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Outputs([1], [[2.0]], source="new").write(path)
    assert Outputs.read(path).source == "old"
    assert [*tmp_path.iterdir()] == [path]


KILLED = """
import os, signal, sys, torch
import gradmimic.outputs_file
from gradmimic.outputs import cache_outputs
gradmimic.outputs_file._AT_ONCE = 1 << 16
def batches():
    for i in range(3):
        yield range(64 * i, 64 * (i + 1)), torch.rand(64, 1024)
    print(os.path.getsize(os.path.join(os.path.dirname(sys.argv[1]), ".o.parquet.tmp")), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
cache_outputs(torch.nn.Identity(), ((list(ids), x) for ids, x in batches()), sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_half_way_nothing_bears_the_name(tmp_path):
    path = tmp_path / "o.parquet"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    assert int(done.stdout) > 0  # some of it was on disk already
    assert not path.exists()
    Outputs([1], [[1.0]]).write(path)  # what was left behind is no obstacle
    assert [*tmp_path.iterdir()] == [path]


def test_writing_as_batches_come_holds_a_part_only(tmp_path, monkeypatch):
    monkeypatch.setattr("gradmimic.outputs_file._AT_ONCE", 4 * 16)
    n, width = 26, 16
    batches = ((np.arange(a, a + 2), torch.full((2, width), a)) for a in range(0, n, 2))
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    cache_outputs(nn.Identity(), batches, one).write(two)
    for path in (one, two):
        with pq.ParquetFile(path) as file:
            counts = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        assert counts == [4] * 6 + [2]
        assert Outputs.read(path).of([0, n - 1])[0][:, 5].tolist() == [0.0, n - 2]
