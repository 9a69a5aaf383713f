import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradmimic.data import Samples, read_samples
from gradmimic.errors import DataError

DATA = Path(os.environ.get("GRADMIMIC_DATA", Path(__file__).parents[2] / "shared" / "data"))
X = np.arange(12, dtype=np.float32).reshape(4, 3) / 8  # exact in float16 too


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


@pytest.fixture
def npy(tmp_path):
    np.save(tmp_path / "x.npy", X.astype(np.float16))
    np.save(tmp_path / "y.npy", np.array([1, 0, 2, 1], np.uint8))
    return tmp_path / "x.npy"


def fixed_lists(matrix):
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])


@pytest.mark.parametrize("form", ["npy", "npz", "X.npz", "fixed", "list", "columns"])
def test_every_form_gives_the_same_samples(tmp_path, npy, form):
    y = np.array([1, 0, 2, 1])
    labels = None
    if form == "npy":
        path, labels = npy, "y.npy"
    elif form.endswith("npz"):
        path = tmp_path / "data.npz"
        np.savez(path, **({"X": X, "y": y} if "X" in form else {"features": X, "labels": y}))
    elif form == "columns":  # written in another order: patterns and guesses sort by name
        names = {f"f{i}": X[:, i] for i in (2, 0, 1)}
        path = parquet(tmp_path / "data.parquet", index=np.arange(4), label=y, **names)
    else:
        column = fixed_lists(X) if form == "fixed" else pa.array(X.tolist())
        path = parquet(tmp_path / "data.parquet", label=y, embedding=column)
    samples = read_samples(path, labels=labels)
    assert samples.inputs.dtype == np.float32
    assert np.array_equal(samples.inputs, X)
    assert samples.labels.tolist() == [1, 0, 2, 1]
    assert samples.labels.dtype == samples.ids.dtype == np.int64
    assert samples.classes == ("0", "1", "2")
    assert samples.ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("spec", ["y.txt", "y.csv", "two.csv:name", "t.parquet:name", "names.npy"])
def test_labels_by_name_from_anywhere(tmp_path, npy, spec):
    names = ["dog", "cat", "eel", "dog"]
    (tmp_path / "y.txt").write_text("\n".join(names) + "\n")
    (tmp_path / "y.csv").write_text("what\n" + "\n".join(names) + "\n")
    (tmp_path / "two.csv").write_text("id,name\n" + "".join(f"7,{name}\n" for name in names))
    parquet(tmp_path / "t.parquet", name=pa.array(names).dictionary_encode())
    np.save(tmp_path / "names.npy", np.array(names))
    samples = read_samples(npy, labels=spec)
    assert samples.classes == ("cat", "dog", "eel")
    assert samples.labels.tolist() == [1, 0, 2, 1]


def test_a_path_is_found_beside_the_data_first_then_from_here(tmp_path, npy, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    np.save(here / "y.npy", np.zeros(4, np.int64))
    np.save(here / "z.npy", np.zeros(4, np.int64))
    assert read_samples(npy, labels="y.npy").labels.tolist() == [1, 0, 2, 1]
    assert read_samples(npy, labels="z.npy").labels.tolist() == [0, 0, 0, 0]


def test_integers_keep_number_order_and_gaps_close(tmp_path, npy):
    (tmp_path / "y.txt").write_text("10\n9\n9\n-1\n")
    samples = read_samples(npy, labels="y.txt")
    assert samples.classes == ("-1", "9", "10")
    assert samples.labels.tolist() == [2, 1, 1, 0]


def test_further_tables_follow_the_first_numbering(tmp_path, npy):
    (tmp_path / "train.txt").write_text("dog\ncat\neel\ncat\n")
    (tmp_path / "test.txt").write_text("eel\neel\ndog\ndog\n")
    train = read_samples(npy, labels="train.txt")
    test = read_samples(npy, labels="test.txt", classes=train.classes)
    assert test.labels.tolist() == [2, 2, 1, 1]
    (tmp_path / "test.txt").write_text("eel\nfox\ngnu\ndog\n")
    with pytest.raises(DataError, match=r"none of the 3 classes: 'fox', 'gnu' .first in row 1"):
        read_samples(npy, labels="test.txt", classes=train.classes)


def test_integers_never_pass_for_the_positions_of_other_tables_names(tmp_path, npy):
    (tmp_path / "names.txt").write_text("dog\ncat\neel\ncat\n")
    train = read_samples(npy, labels="names.txt")
    with pytest.raises(DataError, match="none of the 3 classes: '0', '1', '2'"):
        read_samples(npy, labels="y.npy", classes=train.classes)
    order = ["eel", "cat", "dog"]
    test = read_samples(npy, labels="y.npy", classes=train.classes, class_names=order)
    assert [test.classes[k] for k in test.labels] == ["cat", "eel", "dog", "cat"]
    alone = read_samples(npy, labels="y.npy", class_names=order)
    assert alone.classes == ("eel", "cat", "dog")
    with pytest.raises(DataError, match="class names must be unique"):
        read_samples(npy, labels="y.npy", class_names=["a", "a", "b"])


def test_ids_true_labels_and_texts(tmp_path, npy):
    path = tmp_path / "t.parquet"
    text, ids = ["<a>", "", "c\nd", "é"], ["007", "8", "9", "10"]
    parquet(path, text=text, id=ids, truth=[1, 1, 1, 1])
    samples = read_samples(
        npy, labels="y.npy", ids="t.parquet:id", true_labels=f"{path}:truth", show="t.parquet:text"
    ).take(np.array([3, 0, 2]))
    assert samples.ids.tolist() == ["10", "007", "9"]
    assert samples.true_labels is not None
    assert samples.true_labels.tolist() == [1, 1, 1]
    assert samples.shown is not None
    assert [samples.shown.text(row) for row in range(3)] == ["é", "<a>", "c\nd"]
    assert samples.shown.image(0) is None
    assert len(samples.take(samples.labels == 1)) == 2


def test_labels_are_never_guessed_to_be_features(tmp_path):
    path = parquet(tmp_path / "t.parquet", a=X[:, 0], b=X[:, 1], target=[0.0, 1.0, 1.0, 0.0])
    assert read_samples(path, labels="target").inputs.shape == (4, 2)
    chosen = read_samples(path, labels="target", inputs=["b", "a"])
    assert np.array_equal(chosen.inputs, X[:, [1, 0]])


def read(path, **options):
    return lambda: read_samples(path, **options)


def test_what_is_missing_is_named(tmp_path, npy):
    table = parquet(tmp_path / "t.parquet", f=X[:, 0], kind=["a"] * 4, label=[0, 1, 0, 1])
    (tmp_path / "two.csv").write_text("a,b\n1,2\n")
    np.savez(tmp_path / "odd.npz", rows=X, y=np.zeros(4))
    (tmp_path / "x.txt").write_text("1\n")
    cases = {
        "no file or folder .*gone.npy": read(tmp_path / "gone.npy"),
        "no file gone.npy, neither in .* nor in": read(npy, labels="gone.npy"),
        "brings no labels of its own": read(npy),
        "no column 'lable': .*t.parquet has the columns f, kind, label": read(
            table, labels="lable"
        ),
        "no column 'lable': .*x.npy has no named columns": read(npy, labels="lable"),
        "no column 'lable' in .*t.parquet; it has f, kind, label": read(
            npy, labels="t.parquet:lable"
        ),
        "two.csv has several columns; it has a, b": read(npy, labels="two.csv"),
        "has no named columns, so none called 'a'": read(npy, labels="y.npy:a"),
        "no array features or X or x; it has rows, y": read(tmp_path / "odd.npz"),
        "no column 'g.' in .*; it has f, kind, label": read(table, inputs="g*"),
        "features come as .npy, .npz or .parquet": read(tmp_path / "x.txt", labels="y.npy"),
    }
    for message, attempt in cases.items():
        with pytest.raises(DataError, match=message):
            attempt()


def test_pickled_arrays_are_refused(tmp_path, npy):
    np.save(tmp_path / "evil.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "evil.npz", X=np.array([{}], dtype=object), y=np.zeros(1))
    with pytest.raises(DataError, match=r"evil.npy holds pickled Python objects, which are never"):
        read_samples(tmp_path / "evil.npy", labels="y.npy")
    with pytest.raises(DataError, match="never loaded because unpickling can run code"):
        read_samples(npy, labels="evil.npy")
    with pytest.raises(DataError, match=r"evil.npz holds pickled Python objects"):
        read_samples(tmp_path / "evil.npz")


@pytest.mark.parametrize("name", ["bad.npy", "bad.npz", "bad.parquet", "bad.txt"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfenonsense", b"PK\x03\x04", b"PAR1PAR1"])
def test_damaged_files_end_in_an_error_that_names_them(tmp_path, npy, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_samples(npy, labels=name)


def test_parts_of_different_lengths(tmp_path, npy):
    np.save(tmp_path / "short.npy", np.zeros(3, np.int64))
    for part in ("labels", "ids", "true_labels", "show"):
        with pytest.raises(DataError, match=r"3 rows, but .*x.npy has 4 samples; give one per"):
            read_samples(npy, **{"labels": "y.npy", part: "short.npy"})


def test_values_that_cannot_be_labels(tmp_path, npy):
    np.save(tmp_path / "half.npy", np.array([0, 1, 0.5, 1]))
    np.save(tmp_path / "nan.npy", np.array([0, 1, 1, np.nan]))
    np.save(tmp_path / "hot.npy", np.eye(4, 3))
    (tmp_path / "gap.txt").write_text("a\n\nb\nc\n")
    parquet(tmp_path / "null.parquet", label=pa.array([1, None, 0, 0]))
    cases = {
        "half.npy": "whole numbers or names; row 2 holds 0.5",
        "nan.npy": "row 3 holds nan",
        "hot.npy": r"one value per sample, \[n\]; its shape is \(4, 3\)",
        "gap.txt": "gap.txt is empty in row 1",
        "null.parquet": "null.parquet:label is empty in row 1",
    }
    for spec, message in cases.items():
        with pytest.raises(DataError, match=message):
            read_samples(npy, labels=spec)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_features_must_be_finite_in_float32(tmp_path, npy, bad):
    wrong = X.astype(np.float64)
    wrong[2, 1] = bad
    np.save(npy, wrong)
    with pytest.raises(DataError, match=r"x.npy holds (nan|inf) in row 2 .sample 2., column 1"):
        read_samples(npy, labels="y.npy")


def test_features_must_be_a_matrix(tmp_path, npy):
    for array, got in ((X[0], r"\(3,\)"), (X[None], r"\(1, 4, 3\)"), (X.astype(str), "<U")):
        np.save(npy, array)
        with pytest.raises(DataError, match=f"must be a matrix of numbers.*{got}"):
            read_samples(npy, labels="y.npy")
    ragged = parquet(tmp_path / "r.parquet", f=[[1.0], [1.0, 2.0]], label=[0, 1])
    with pytest.raises(DataError, match="row 0 has 1 numbers, row 1 has 2"):
        read_samples(ragged)
    numbers = parquet(tmp_path / "i.parquet", a=[1, 2], label=[0, 1])
    with pytest.raises(DataError, match=r"cannot tell which columns of .*It has a \(int64\)"):
        read_samples(numbers)
    assert read_samples(numbers, inputs="a").inputs.tolist() == [[1], [2]]


def test_ids_are_unique_and_tables_not_empty(tmp_path, npy):
    (tmp_path / "ids.txt").write_text("a\nb\nc\nb\n")
    with pytest.raises(DataError, match="the id 'b' stands in rows 1 and 3"):
        read_samples(npy, labels="y.npy", ids="ids.txt")
    np.save(tmp_path / "y.npy", np.zeros(0, np.int64))
    empty = parquet(tmp_path / "e.parquet", f=X[:0, 0], label=np.zeros(0, np.int64))
    with pytest.raises(DataError, match="holds no samples"):
        read_samples(empty)


def test_samples_check_what_is_put_together_by_hand():
    parts = {"inputs": X, "classes": ("a", "b"), "ids": np.arange(4), "source": "here"}
    with pytest.raises(DataError, match=r"must lie in 0 … 1, one number per class; row 3 holds 2"):
        Samples(labels=np.array([0, 1, 0, 2]), **parts)
    with pytest.raises(DataError, match="here has 4 samples, but 3 labels"):
        Samples(labels=np.array([0, 1, 0]), **parts)
    good = Samples(labels=np.array([0, 1, 0, 1]), **parts)
    with pytest.raises(DataError, match="one bool per sample: 4, got 2"):
        good.take(np.array([True, False]))


@pytest.mark.skipif(not (DATA / "cifar10n").is_dir(), reason="set GRADMIMIC_DATA to the data")
def test_cifar10n_features():
    samples = read_samples(
        DATA / "cifar10n" / "features_train.npy",
        labels="human_labels_train.npy",
        true_labels="images_train.parquet:clean_label",
        show="images_train.parquet:image",
    )
    assert samples.inputs.shape == (30_000, 384)
    assert (samples.labels != samples.true_labels).sum() == 5137
    assert samples.shown is not None
    for row in (0, 29_999):
        picture = samples.shown.image(row)
        assert picture is not None
        assert picture.startswith(b"\xff\xd8")


@pytest.mark.skipif(not (DATA / "banking77").is_dir(), reason="set GRADMIMIC_DATA to the data")
def test_banking77_features():
    folder = DATA / "banking77"
    train = read_samples(
        folder / "features_train.npy", labels="train.parquet:category", show="train.parquet:text"
    )
    test = read_samples(
        folder / "features_test.npy", labels="test.parquet:category", classes=train.classes
    )
    assert len(train.classes) == 77
    assert np.bincount(test.labels).tolist() == [40] * 77
    assert train.shown is not None
    assert len(train.shown.text(0) or "") > 5
