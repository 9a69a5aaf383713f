"""What a user can get wrong with pairs is said before anything is trained or written."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from blobs import write_pictures
from clip_runs import clip_keys, pairs, picture, write_pools, write_tar

from gradmimic.errors import (
    ConfigError,
    DataError,
    GradMimicError,
    MissingExtraError,
    ParameterError,
    ReferenceMismatchError,
)
from gradmimic.run.clip.config import ClipConfig
from gradmimic.run.clip.job import run_clip
from gradmimic.run.clip.models import open_pair_model
from gradmimic.run.clip.sets import open_tests

pytest.importorskip("PIL", reason="needs the extra 'images'")


@pytest.fixture
def folder(tmp_path):
    write_pools(tmp_path)
    return tmp_path


def fails(folder, error, message, **changes):
    """Check that a run is refused, and leaves nothing behind."""
    with pytest.raises(error, match=message):
        run_clip(ClipConfig(**clip_keys(folder, **changes)))
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (DataError, "no file or folder .*nowhere", {"data": "nowhere"}),
        (DataError, "no file or folder .*nowhere", {"trusted": "nowhere"}),
        (DataError, "no file or folder .*nowhere", {"test": "nowhere"}),
        (DataError, "nowhere", {"zero_shot": "nowhere.parquet"}),
        (ConfigError, "model='big' is unknown; expected 'small'", {"model": "big"}),
        (ReferenceMismatchError, "nowhere", {"start": "nowhere.pt"}),
        (ParameterError, "nothing.*", {"params": "nothing.*"}),
        (DataError, r"trusted names 2 ids .* such as", {"trusted": ("1-0001", "x", "y")}),
        (DataError, "covers 1 pairs of .*; expected 2 or more", {"trusted": "0:1"}),
        (DataError, "covers 0 pairs", {"trusted": "500:"}),
        (DataError, "leaves 4 pairs to train on, fewer than one batch of 16", {"trusted": "0:90"}),
        (DataError, "leaves 94 pairs to train on, fewer than one batch of 95", {"batch_size": 95}),
        (DataError, "noise_rate 0.01 of 94 pairs are 0; expected 2", {"noise_rate": 0.01}),
        (DataError, "none of the first samples of .* has an id called 'sha'", {"ids": "sha"}),
    ],
)
def test_what_cannot_be(folder, error, message, changes):
    fails(folder, error, message, **changes)


def test_pairs_that_are_all_of_no_use(folder):
    write_tar(folder / "bad.tar", [("a", b"x", "one"), ("b", picture(RNG, "red", "red"), " ")])
    message = "none of the 2 pairs of .*bad.tar can be used .*: 1, .*: 1"
    fails(folder, DataError, message, data=str(folder / "bad.tar"))
    fails(folder, DataError, message, trusted=str(folder / "bad.tar"))
    fails(folder, DataError, "none of the 2 pictures of test=", test=str(folder / "bad.tar"))


def test_a_test_set_that_is_cut_short(folder):
    whole = (folder / "test.tar").read_bytes()
    (folder / "test.tar").write_bytes(whole[: len(whole) // 2 + 300])
    fails(folder, DataError, r"the test pairs .*test.tar are not whole: test is cut short")
    (folder / "test.tar").write_bytes(b"junk")
    fails(folder, DataError, "are not whole: test is no tar archive")


def test_a_reference_of_another_model(folder):
    torch.save({"head.weight": torch.zeros(2, 2)}, folder / "other.pt")
    more = {"trusted": ..., "reference_epochs": ..., "reference": str(folder / "other.pt")}
    fails(folder, ReferenceMismatchError, "lacks 2 of the 2 weights that are scored", **more)


def test_a_folder_with_another_run(folder):
    (folder / "run").mkdir()
    (folder / "run" / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"already holds a run \(metrics.json\). Give another"):
        run_clip(ClipConfig(**clip_keys(folder)))
    (folder / "run" / "reference.pt").write_bytes(b"")
    more = {"trusted": ..., "reference_epochs": ..., "overwrite": True}
    with pytest.raises(ConfigError, match="is part of the run that would be replaced"):
        run_clip(ClipConfig(**clip_keys(folder, **more, reference=f"{folder}/run/reference.pt")))


@pytest.mark.parametrize("module", ["jinja2", "altair", "vl_convert"])
def test_missing_libraries(folder, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    fails(folder, MissingExtraError, r"pip install 'gradmimic\[report\]'", report=True)


# The sets to measure on

RNG = np.random.default_rng(0)


def opened(folder, **changes):
    config = ClipConfig(**clip_keys(folder, test=..., **changes))
    return open_tests(config, open_pair_model("small", image_size=16))


def write_labelled(path, **columns):
    n = len(next(iter(columns.values())))
    images = [picture(RNG, "red", "blue") for _ in range(n)]
    pq.write_table(pa.table({"image": images, **columns}), path)


def test_labelled_pictures_from_a_folder_and_from_a_table(folder):
    write_pictures(folder / "shapes")
    (folder / "shapes" / "red" / "bad.png").write_bytes(b"x")
    by_folder = opened(folder, zero_shot=str(folder / "shapes"))
    assert by_folder.classes == ["blue", "red"]
    assert by_folder.sizes["zero_shot"] == {"pictures": 24, "unusable": 1}
    write_labelled(folder / "l.parquet", name=["b", "a", "b"], n=[0, 1, 0])
    by_table = opened(folder, zero_shot=str(folder / "l.parquet"), templates=("a {}", "the {}"))
    assert (by_table.classes, by_table.templates) == (["a", "b"], ("a {}", "the {}"))
    assert [told for _, told in by_table.labelled.blocks()] == [[1, 0, 1]]
    model = by_table.pair.model
    found = by_table.measure(model)["zero_shot"]
    assert found in (0, 1 / 3, 2 / 3, 1)
    assert by_table.measure(model)["zero_shot"] == found


def test_a_column_is_named_or_found(folder):
    write_labelled(folder / "two.parquet", text=["x", "y"], class_name=["a", "b"])
    assert opened(folder, zero_shot=f"{folder}/two.parquet").classes == ["a", "b"]
    assert opened(folder, zero_shot=f"{folder}/two.parquet:text").classes == ["x", "y"]


@pytest.mark.parametrize(
    ("columns", "spec", "message"),
    [
        ({"a": ["x", "y"], "b": ["x", "y"]}, "", r"several columns of text \(a, b\)"),
        ({"a": [1, 2]}, "", "no columns of text; expected one with the names"),
        ({"a": [1, 2]}, ":a", "holds numbers; a zero-shot classifier needs the names"),
        ({"a": ["x", "x"]}, "", "has 1 class; expected 2 or more"),
        ({"a": ["x", "y"]}, ":b", "no column 'b'"),
    ],
)
def test_labelled_pictures_that_cannot_be(folder, columns, spec, message):
    write_labelled(folder / "l.parquet", **columns)
    with pytest.raises(DataError, match=message):
        opened(folder, zero_shot=f"{folder}/l.parquet{spec}")


def test_templates_from_a_file(folder):
    write_labelled(folder / "l.parquet", name=["a", "b"])
    file = folder / "templates.txt"
    keys = {"zero_shot": f"{folder}/l.parquet", "templates": str(file)}
    with pytest.raises(ConfigError, match="Cannot read the templates"):
        opened(folder, **keys)
    file.write_text("a {}\n\nthe {}\n")
    assert opened(folder, **keys).templates == ("a {}", "the {}")
    for text in ("a cat\n", "\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="expected sentences with {} for the class"):
            opened(folder, **keys)


def test_several_captions_of_a_picture_are_all_right(folder):
    rows = [*pairs(12, seed=4)]
    table = {
        "image": [image for _, image, _ in rows],
        "captions": [[caption, f"{caption} again"] for *_, caption in rows],
    }
    pq.write_table(pa.table(table), folder / "several.parquet")
    tests = open_tests(
        ClipConfig(**clip_keys(folder, test=str(folder / "several.parquet"))),
        open_pair_model("small", image_size=16),
    )
    assert [len(own) for _, captions in tests.pairs.blocks() for own in captions] == [2] * 12
    found = tests.measure(tests.pair.model)["retrieval"]
    assert 0 <= found["image_to_text"]["R@1"] <= found["image_to_text"]["R@10"] <= 1
    assert round(found["text_to_image"]["R@1"] * 24, 6) % 1 == 0


def test_every_refusal_is_one_of_ours():
    assert issubclass(DataError, GradMimicError)
