import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blobs import TRUSTED, blob_keys, write_blobs, write_pictures

from gradmimic.errors import ConfigError, DataError
from gradmimic.run.config import RunConfig
from gradmimic.run.inputs import load_inputs

N = 240
NO_NOISE = {"noise": ..., "noise_rate": ...}


@pytest.fixture
def folder(tmp_path):
    write_blobs(tmp_path, N)
    (tmp_path / "ids.txt").write_text("".join(f"s{row:03}\n" for row in range(N)))
    return tmp_path


def load(folder, **changes):
    return load_inputs(RunConfig(**blob_keys(folder, **changes)))


def save_ids(folder, name, ids):
    if name.endswith(".npy"):
        np.save(folder / name, np.array(ids))
    else:
        (folder / name).write_text("\n".join(map(str, ids)) + "\n")
    return str(folder / name)


@pytest.mark.parametrize(
    ("trusted", "rows"),
    [
        ("0:60", range(60)),
        (":3", range(3)),
        ("230:", range(230, N)),
        ("238:9999", range(238, N)),
        ((5, "2", 5), [2, 5]),
        (["a.txt", [7, 3]], [3, 7]),
        (["a.npy", [7, 3]], [3, 7]),
        (["a.npy", ["7", "3"]], [3, 7]),
    ],
)
def test_trusted_rows_leave_the_training_set(folder, trusted, rows):
    if isinstance(trusted, list):
        trusted = save_ids(folder, *trusted)
    inputs = load(folder, trusted=trusted, **NO_NOISE)
    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    rows, rest = list(rows), sorted(set(range(N)) - set(rows))
    for samples, expected in ((inputs.trusted, rows), (inputs.train, rest)):
        assert samples.ids.tolist() == expected
        assert np.array_equal(samples.inputs, x[expected])
        assert np.array_equal(samples.labels, y[expected])
    assert inputs.wrong is None


@pytest.mark.parametrize(
    "trusted", [("s005", "s002"), ["a.txt", ["s002", "s005"]], ["a.npy", ["s005", "s002"]]]
)
def test_trusted_string_ids(folder, trusted):
    if isinstance(trusted, list):
        trusted = save_ids(folder, *trusted)
    inputs = load(folder, ids="ids.txt", trusted=trusted)
    assert inputs.trusted.ids.tolist() == ["s002", "s005"]
    assert len(inputs.train) == N - 2


def test_a_second_table_is_trusted_as_a_whole(folder):
    inputs = load(folder, trusted=str(folder / "test_x.npy"), trusted_labels="test_y.npy")
    assert (len(inputs.train), len(inputs.trusted)) == (N, 90)
    assert np.array_equal(inputs.trusted.labels, np.load(folder / "test_y.npy"))
    assert inputs.trusted.classes == inputs.train.classes


def test_trusted_labels_stand_for_the_given_ones_among_the_trusted(folder):
    y = np.load(folder / "y.npy")
    np.save(folder / "checked.npy", (y + 1) % 3)
    inputs = load(folder, trusted_labels="checked.npy", **NO_NOISE)
    assert np.array_equal(inputs.trusted.labels, (y[:TRUSTED] + 1) % 3)
    assert np.array_equal(inputs.train.labels, y[TRUSTED:])


@pytest.mark.parametrize("noise", ["symmetric", "pair"])
@pytest.mark.parametrize("rate", [0.29, 0.5, 1.0])
def test_noise_moves_an_exact_share_of_what_is_not_trusted(folder, noise, rate):
    inputs = load(folder, noise=noise, noise_rate=rate)
    y = np.load(folder / "y.npy")
    assert int(inputs.wrong.sum()) == int(rate * (N - TRUSTED))
    assert np.array_equal(inputs.train.true_labels, y[TRUSTED:])
    assert np.array_equal(inputs.wrong, inputs.train.labels != y[TRUSTED:])
    assert np.array_equal(inputs.trusted.labels, y[:TRUSTED])
    again = load(folder, noise=noise, noise_rate=rate).train.labels
    other = load(folder, noise=noise, noise_rate=rate, seed=1).train.labels
    assert np.array_equal(inputs.train.labels, again)
    assert rate == 1 or not np.array_equal(inputs.train.labels, other)


def test_noise_leaves_true_labels_that_are_known_better(folder):
    y = np.load(folder / "y.npy")
    np.save(folder / "better.npy", np.where(np.arange(N) < 100, y, (y + 1) % 3))
    inputs = load(folder, true_labels="better.npy")
    assert np.array_equal(inputs.train.true_labels, np.load(folder / "better.npy")[TRUSTED:])


def test_all_tables_number_their_classes_alike(folder):
    names = np.array(["frog", "ant", "bee"])
    for name in ("y.npy", "test_y.npy"):
        np.save(folder / name, names[np.load(folder / name)])
    inputs = load(folder)
    assert inputs.train.classes == inputs.test.classes == ("ant", "bee", "frog")
    assert [inputs.test.classes[label] for label in inputs.test.labels] == np.load(
        folder / "test_y.npy"
    ).tolist()


def test_a_range_counts_the_rows_of_the_source_also_where_pictures_are_broken(tmp_path):
    write_pictures(tmp_path / "pictures")
    broken = sorted((tmp_path / "pictures" / "blue").iterdir())[1]
    broken.write_bytes(b"not a picture")
    inputs = load_inputs(RunConfig(data=str(tmp_path / "pictures"), trusted="0:3", image_size=4))
    assert inputs.trusted.ids.tolist() == ["blue/001.png", "blue/005.png"]
    assert len(inputs.train) == 24 - 3
    assert [skipped.sample_id for skipped in inputs.train.skipped] == ["blue/003.png"]
    named = load_inputs(
        RunConfig(
            data=str(tmp_path / "pictures"), trusted=("blue/001.png", "blue/003.png"), image_size=4
        )
    )
    assert named.trusted.ids.tolist() == ["blue/001.png"]


@pytest.mark.parametrize(
    ("trusted", "message"),
    [
        ((1, 999), r"the list of trusted ids names 1 ids that .*x.npy does not hold, such as 999"),
        (("--5", "²"), "names 2 ids .*, such as '--5'; its first id is 0"),
        ("240:", r"trusted='240:' covers none of the 240 samples"),
        ("5:5", r"trusted='5:5' covers none of"),
        (":", r"trusted=':' covers all of the 240 samples .*; expected some to trust"),
        ("0-60", r"trusted='0-60' is neither a range of rows such as 0:500 nor a file"),
        (["a.txt", ["x1"]], r"a.txt' names 1 ids that .*, such as 'x1'"),
        (["a.npy", 3], r"a.npy must hold one value per sample"),
    ],
)  # fmt: skip
def test_trusted_samples_that_cannot_be(folder, trusted, message):
    if isinstance(trusted, list):
        trusted = str(folder / trusted[0]) if trusted[1] == 3 else save_ids(folder, *trusted)
        np.save(folder / "a.npy", np.array(3))
    with pytest.raises(DataError, match=message):
        load(folder, trusted=trusted)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"junk", "a.npy is not a .npy file"),
        ("a.txt", b"caf\xe9\n", "a.txt is not UTF-8 text"),
    ],
)
def test_damaged_lists_of_ids(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(folder, trusted=str(folder / name))


def test_tables_that_do_not_fit(folder):
    np.save(folder / "wide.npy", np.zeros((90, 5), dtype=np.float32))
    wide = {"trusted_labels": "test_y.npy", "trusted": str(folder / "wide.npy")}
    with pytest.raises(
        DataError, match=r"wide.npy holds inputs of shape \[5\], expected \[4\] as in .*x.npy"
    ):
        load(folder, **wide)
    with pytest.raises(DataError, match=r"wide.npy holds inputs of shape \[5\]"):
        load(folder, test=str(folder / "wide.npy"))


def test_classes_that_the_data_do_not_have(folder):
    np.save(folder / "test_y.npy", np.arange(90) % 4)
    with pytest.raises(
        DataError, match=r"test_y.npy holds labels that are none of the 3 classes: '3'"
    ):
        load(folder)
    np.save(folder / "truth.npy", np.arange(N) % 4)
    with pytest.raises(DataError, match=r"truth.npy holds labels that are none of the 3 classes"):
        load(folder, test=..., test_labels=..., true_labels="truth.npy")


def test_noise_that_cannot_be(folder):
    with pytest.raises(ConfigError, match=r"a share of the labels, in \[0, 1\]; got 1.5"):
        load(folder, noise_rate=1.5)


def test_the_truth_is_never_taken_for_a_feature(folder):
    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    columns = {f"f{place}": x[:, place] for place in range(4)}
    table = pa.table({**columns, "given": (y + 1) % 3, "truth": y.astype(float)})
    pq.write_table(table, folder / "all.parquet")
    inputs = load(
        folder, data=str(folder / "all.parquet"), labels="given", true_labels="truth", **NO_NOISE
    )
    assert np.array_equal(inputs.train.inputs, x[TRUSTED:])
    assert inputs.wrong.all()
