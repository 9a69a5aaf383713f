import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from blobs import CLASSES, run_blobs, write_blobs, write_pictures

from gradmimic.cli import main
from gradmimic.outputs import Outputs
from gradmimic.run.models import build_model


@pytest.fixture
def cache(tmp_path, monkeypatch, capsys):
    """Call ``gradmimic cache`` in a folder; return its exit status, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gradmimic", "cache", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return caught.value.code or 0, printed

    def refused(message, *arguments):
        status, printed = call(*arguments)
        assert (status, printed.out) == (1, "")
        assert message in printed.err

    call.refused = refused
    return call


P = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.0, 0.0, 1.0]])
LOGITS = np.log(np.maximum(P, 2.0**-24))
LOGITS = LOGITS - LOGITS.mean(1, keepdims=True)


def check(path, ids, expected=LOGITS):
    outputs = Outputs.read(path)
    assert list(outputs.ids) == ids
    np.testing.assert_allclose(outputs.of(ids)[0].numpy(), expected, atol=8e-3)
    return outputs


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_what_a_run_trained_can_be_asked_about_all_rows(cache, tmp_path, model):
    write_blobs(tmp_path)
    run_blobs(tmp_path, model=model, epochs=1, hidden=7)
    status, printed = cache(
        "--data", "x.npy", "--reference", "run/reference.pt", "--out", "new/o.parquet"
    )
    assert status == 0, printed.err
    assert printed.out.startswith("240 rows × 3 logits, 0.0 MB, in ")
    assert printed.out.endswith("\noutputs: new/o.parquet\n")
    outputs = Outputs.read("new/o.parquet")
    assert outputs.source == "run/reference.pt"
    reference = build_model(model, np.load("x.npy"), CLASSES, hidden=7, seed=0)
    reference.load_state_dict(torch.load("run/reference.pt", weights_only=True))
    with torch.no_grad():
        logits = reference(torch.from_numpy(np.load("x.npy")))
    torch.testing.assert_close(outputs.of(np.arange(240))[0], logits, atol=2e-2, rtol=2e-3)


def test_a_linear_probe_without_scaling_and_ids_from_a_file(cache, tmp_path):
    np.save("x.npy", np.eye(2, 3, dtype=np.float32))
    (tmp_path / "ids.txt").write_text("b\na\n")
    weight = torch.arange(12.0).reshape(4, 3)
    torch.save({"head.weight": weight, "head.bias": torch.zeros(4)}, "probe.pt")
    assert cache("--data", "x.npy", "--reference", "probe.pt", "--ids", "ids.txt")[0] == 0
    check("outputs.parquet", ["b", "a"], weight.T[:2])


def test_pictures_have_their_paths_as_ids_and_broken_ones_none(cache, tmp_path):
    pytest.importorskip("PIL.Image", reason="needs the extra 'images'")
    write_pictures(tmp_path / "pictures", n=6)
    (tmp_path / "pictures/red/000.png").write_bytes(b"no picture")
    model = build_model("cnn", np.zeros((1, 3, 8, 8), np.uint8), 5, hidden=4, seed=0)
    torch.save(model.state_dict(), "cnn.pt")
    arguments = ["--data", "pictures", "--reference", "cnn.pt", "--image-size", 8]
    status, printed = cache(*arguments)
    assert status == 0, printed.err
    assert "Note: 1 images could not be decoded and have no outputs." in printed.out
    assert "Note: The data have 2 classes, but the reference gives 5 outputs." in printed.out
    assert "5 rows × 5 logits" in printed.out
    assert Outputs.read("outputs.parquet").of(["red/002.png", "red/000.png"])[1].tolist() == [
        True,
        False,
    ]
    cache.refused(
        "is not a cnn for inputs of shape [3, 8, 8]", *arguments, "--hidden", 5, "--overwrite"
    )


def test_a_column_of_labels_is_no_feature(cache):
    x = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    table = pa.table({"f0": x[:, 0], "f1": x[:, 1], "given": np.arange(9.0) % 3})
    pq.write_table(table, "x.parquet")
    torch.save({"head.weight": torch.eye(2), "head.bias": torch.zeros(2)}, "probe.pt")
    arguments = ["--data", "x.parquet", "--reference", "probe.pt"]
    cache.refused("is not a linear for inputs of shape [3]", *arguments)
    status, printed = cache(*arguments, "--labels", "given")
    assert status == 0
    assert "Note: The data have 3 classes, but the reference gives 2 outputs." in printed.out
    check("outputs.parquet", [*range(9)], x)


FORMS = {
    "fixed": lambda: {"p": pa.FixedSizeListArray.from_arrays(pa.array(P.ravel()), 3)},
    "lists": lambda: {"p": pa.array(P.tolist(), pa.large_list(pa.float32()))},
    "columns": lambda: {"p_b": P[:, 1], "p_a": P[:, 0], "p_c": P[:, 2]},
}


@pytest.mark.parametrize("form", FORMS)
def test_outputs_that_a_parquet_holds(cache, form):
    columns = {"key": ["z", "x", "y"], "other": [1, 2, 3], **FORMS[form]()}
    pq.write_table(pa.table(columns), "t.parquet", row_group_size=2)
    wanted = ["--outputs", "p_*"] if form == "columns" else ["--outputs", "p"]
    arguments = ["--table", "t.parquet", "--ids", "key", "--kind", "probabilities", *wanted]
    status, printed = cache(*arguments)
    assert status == 0, printed.err
    assert "3 rows × 3 logits" in printed.out
    assert ("order: p_a, p_b, p_c." in printed.out) == (form == "columns")
    assert check("outputs.parquet", ["z", "x", "y"]).source == "t.parquet"
    if form != "columns":  # the only column of lists need not be named
        assert cache(*arguments[:-2], "--out", "again.parquet")[0] == 0
        check("again.parquet", ["z", "x", "y"])


def test_outputs_that_other_tables_hold(cache):
    named = pa.table({"id": [3, 1, 2], "p_0": P[:, 0], "p_10": P[:, 2], "p_2": P[:, 1]})
    pa.csv.write_csv(named, "t.csv")
    np.save("t.npy", P.astype(np.float16))
    np.savez("t.npz", key=np.array([3, 1, 2]), p=P)
    kind = ["--kind", "probabilities", "--overwrite"]
    assert cache("--table", "t.csv", "--ids", "id", "--outputs", "p_*", *kind)[0] == 0
    check("outputs.parquet", [3, 1, 2])  # p_2 stands before p_10
    arguments = ["--outputs", "p_0", "--outputs", "p_10", "--outputs", "p_2", *kind]
    assert cache("--table", "t.csv", *arguments)[0] == 0
    check("outputs.parquet", [0, 1, 2], LOGITS[:, [0, 2, 1]])  # as they were named
    assert cache("--table", "t.npy", *kind)[0] == 0
    check("outputs.parquet", [0, 1, 2])
    assert cache("--table", "t.npz", "--ids", "key", *kind)[0] == 0
    check("outputs.parquet", [3, 1, 2])
    assert cache("--table", "t.npy", "--kind", "embeddings", "--overwrite")[0] == 0
    assert check("outputs.parquet", [0, 1, 2], P).kind == "embeddings"


def test_large_tables_are_read_piece_by_piece(cache, monkeypatch):
    monkeypatch.setattr("gradmimic.run.output_columns._AT_ONCE", 6)
    monkeypatch.setattr("gradmimic.run.cache._BATCH", 2)
    values = np.arange(33.0).reshape(11, 3)
    columns = {f"v{k}": values[:, k] for k in range(3)}
    pq.write_table(pa.table({"list": values.tolist(), **columns}), "t.parquet", row_group_size=3)
    pa.csv.write_csv(pa.table(columns), "t.csv")
    np.save("t.npy", values)
    torch.save({"head.weight": torch.eye(3), "head.bias": torch.zeros(3)}, "probe.pt")
    for source in (
        ["--table", "t.parquet", "--outputs", "list", "--kind", "logits"],
        ["--table", "t.parquet", "--outputs", "v?", "--kind", "logits"],
        ["--table", "t.csv", "--outputs", "v?", "--kind", "logits"],
        ["--table", "t.npy", "--kind", "logits"],
        ["--data", "t.npy", "--reference", "probe.pt"],
    ):
        status, printed = cache(*source, "--overwrite")
        assert status == 0, printed.err
        assert "6/6" in printed.err
        check("outputs.parquet", [*range(11)], values)


def test_nothing_is_replaced_unless_told(cache):
    np.save("t.npy", P)
    assert cache("--table", "t.npy", "--kind", "logits")[0] == 0
    cache.refused("outputs.parquet exists already. Give another --out, or --overwrite.",
                  "--table", "t.npy", "--kind", "embeddings")  # fmt: skip
    assert Outputs.read("outputs.parquet").kind == "logits"
    pq.write_table(pa.table({"p": P.tolist()}), "t.parquet")
    cache.refused("t.parquet, which is also what is read", "--table", "t.parquet", "--kind",
                  "logits", "--out", "t.parquet", "--overwrite")  # fmt: skip


def test_what_does_not_go_together(cache):
    cache.refused("--data is missing. Expected --data and --reference")
    cache.refused("--reference is missing.", "--data", "x.npy")
    cache.refused("--kind is missing.", "--table", "t.npy")
    cache.refused(
        "--outputs does not go with --data", "--data", "x", "--reference", "r", "--outputs", "p"
    )
    cache.refused(
        "--data does not go with --table", "--table", "t", "--kind", "logits", "--data", "x"
    )
    cache.refused(
        "expected a name that ends in .parquet", "--table", "t", "--kind", "logits", "--out", "o"
    )


def test_what_cannot_be_read(cache, tmp_path):
    cache.refused("no file or folder x.npy (from", "--data", "x.npy", "--reference", "r.pt")
    np.save("x.npy", P.astype(np.float32))
    cache.refused("r.pt", "--data", "x.npy", "--reference", "r.pt")
    torch.save({"fc.weight": torch.eye(3)}, "r.pt")
    cache.refused("holds no head.weight", "--data", "x.npy", "--reference", "r.pt")

    def table(message, *arguments, kind="logits"):
        cache.refused(message, "--table", *arguments, "--kind", kind)

    table("no file t.npy (from", "t.npy")
    table("expected a .parquet, .csv, .npy or .npz file, got r.pt", "r.pt")
    table("holds one array; leave --outputs out", "x.npy", "--outputs", "p")
    np.save("bad.npy", P * [[1], [2], [1]])
    table("the probabilities of sample 1 ", "bad.npy", kind="probabilities")
    columns = {"id": [1, 1, 2], "text": ["a", "b", "c"], "p": P.tolist(), "q": [[1.0], None, [2.0]],
               "r": [[1.0], [1.0, 2.0], [3.0]], "s": [1.0, None, 2.0]}  # fmt: skip
    pq.write_table(pa.table(columns), "t.parquet")
    table(
        "name the outputs in t.parquet with --outputs; it has id (int64), text (string)",
        "t.parquet",
    )
    table("no column 'z*' in t.parquet; it has id, text", "t.parquet", "--outputs", "z*")
    table("t.parquet:text is of type string", "t.parquet", "--outputs", "text")
    table("t.parquet:p is of type list", "t.parquet", "--outputs", "p", "--outputs", "s")
    table("t.parquet:q is empty in row 1", "t.parquet", "--outputs", "q")
    table("row 0 has 1 numbers, row 1 has 2", "t.parquet", "--outputs", "r")
    table("outputs of sample 1 hold nan", "t.parquet", "--outputs", "s")
    table("sample id 1 comes a second time", "t.parquet", "--outputs", "p", "--ids", "id")
    (tmp_path / "ids.txt").write_text("1\n2\n")
    table(
        "ids.txt has 2 ids, but t.parquet has 3 rows",
        "t.parquet",
        "--outputs",
        "p",
        "--ids",
        "ids.txt",
    )
    (tmp_path / "t.csv").write_text("id,p\n1,0.5\n2,half\n")
    table("name the columns of t.csv", "t.csv")
    table("t.csv cannot be read", "t.csv", "--outputs", "p")
    assert not (tmp_path / "outputs.parquet").exists()
    assert not [*tmp_path.glob(".*")]


def test_a_folder_that_cannot_be_written(cache, tmp_path):
    np.save("t.npy", P)
    (tmp_path / "file").touch()
    cache.refused("Cannot write file/o.parquet", "--table", "t.npy", "--kind", "logits",
                  "--out", "file/o.parquet")  # fmt: skip
