"""Pairs in tables, folders and Hugging Face data sets."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("PIL.Image", reason="needs the extra 'images'")

from web import Small, lengths, picture, sample, shard

from gradmimic.data.pairs import (
    Dropped,
    End,
    Pair,
    PairReader,
    find_duplicates,
    open_pairs,
    reasons,
)
from gradmimic.data.pairs.hub import HubSource
from gradmimic.errors import DataError


def read(source):
    """Return kept ids and texts, reasons by key, and the ends."""
    items = [item for shard in range(len(source)) for item in source.read(shard)]
    kept = {item.sample_id: item.texts for item in items if isinstance(item, Pair)}
    dropped = {item.key: item.reason for item in items if isinstance(item, Dropped)}
    return kept, dropped, [item for item in items if isinstance(item, End)]


def write(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def lines(path, *rows):
    path.write_bytes(
        b"\n".join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows)
    )
    return path


def test_a_parquet_of_pictures(tmp_path):
    rows = [
        {"photo": picture(), "caption": "a dog", "uid": "a", "year": 1999},
        {"photo": None, "caption": "a dog", "uid": "b", "year": 1999},
        {"photo": b"junk", "caption": "a dog", "uid": "c", "year": 1999},
        {"photo": picture(), "caption": None, "uid": "d", "year": 1999},
        {"photo": picture(), "caption": "a dog", "uid": None, "year": 1999},
        {"photo": picture(), "caption": "a dog", "uid": "a", "year": 1999},
        {"photo": picture(), "caption": "a cat", "uid": "e", "year": None},
    ]
    source = open_pairs(write(tmp_path / "t.parquet", rows, row_group_size=2))
    kept, dropped, ends = read(source)
    assert kept == {"a": ("a dog",), "e": ("a cat",)}
    assert dropped == {
        "t/1": reasons.NO_PICTURE,
        "t/2": reasons.UNDECODABLE,
        "t/3": reasons.NO_CAPTION,
        "t/4": reasons.NO_ID,
        "t/5": reasons.REPEATED,
    }
    assert ends == [End(total=7)]
    assert next(source.read(0)).meta == {"uid": "a", "year": 1999}
    assert list(source.ids(0)) == ["a", "b", "c", "d", "a", "e"]


def test_lists_of_captions_and_structs_of_pictures(tmp_path):
    rows = [
        {"image": {"bytes": picture(), "path": None}, "texts": ["a dog", "", "ein Hund"]},
        {"image": {"bytes": None, "path": None}, "texts": ["a dog"]},
        {"image": {"bytes": picture(), "path": "x.jpg"}, "texts": []},
        {"image": {"bytes": picture(), "path": "x.jpg"}, "texts": ["", " "]},
    ]
    kept, dropped, _ = read(open_pairs(write(tmp_path / "t.parquet", rows)))
    assert kept == {"t/0": ("a dog", "ein Hund")}
    assert dropped == {
        "t/1": reasons.NO_PICTURE,
        "t/2": reasons.NO_CAPTION,
        "t/3": reasons.EMPTY_CAPTION,
    }


def test_shards_are_row_groups_together(tmp_path, monkeypatch):
    monkeypatch.setattr("gradmimic.data.pairs.table_files.SHARD", 4)
    rows = [{"image": picture(), "text": f"dog {n}"} for n in range(11)]
    source = open_pairs(write(tmp_path / "t.parquet", rows, row_group_size=3))
    assert list(source.shards) == ["t/0", "t/6"]
    assert [source.expected(n) for n in (0, 1)] == [6, 5]
    kept, _, _ = read(source)
    assert kept == {f"t/{n}": (f"dog {n}",) for n in range(11)}
    rows = [json.dumps(row).encode() for row in [{"image": "x.jpg", "text": "dog"}] * 11]
    (tmp_path / "x.jpg").write_bytes(picture())
    source = open_pairs(lines(tmp_path / "t.jsonl", *rows[:5], b"", *rows[5:]))
    assert list(source.shards) == ["t/0", "t/4", "t/8"]
    assert [source.expected(n) for n in range(3)] == [4, 4, 3]
    assert list(read(source)[0]) == [f"t/{n}" for n in range(11)]


def test_paths_may_not_leave_the_folder(tmp_path):
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    for place in (folder / "sub" / "1.jpg", tmp_path / "2.jpg"):
        place.write_bytes(picture())
    (folder / "dir.jpg").mkdir()
    paths = {
        "sub/1.jpg": None,
        "./sub/1.jpg": None,
        "../2.jpg": reasons.OUTSIDE,
        "sub/../../2.jpg": reasons.OUTSIDE,
        f"{tmp_path}/2.jpg": reasons.OUTSIDE,
        "~/2.jpg": reasons.OUTSIDE,
        "file:///etc/passwd": reasons.OUTSIDE,
        "http://localhost/1.jpg": reasons.OUTSIDE,
        "zip://x::y": reasons.OUTSIDE,
        "pipe:touch x": reasons.OUTSIDE,
        "..\\2.jpg": reasons.OUTSIDE,
        "none.jpg": reasons.NO_FILE,
        "dir.jpg": reasons.NO_FILE,
        "sub/\0.jpg": reasons.NO_FILE,
        "": reasons.NO_PICTURE,
    }
    rows = [{"image": path, "caption": "a dog", "uid": path or "-"} for path in paths]
    wanted = {f"t/{n}": reason for n, reason in enumerate(paths.values()) if reason}
    for path in (write(folder / "t.parquet", rows), lines(folder / "t.jsonl", *rows)):
        kept, dropped, _ = read(open_pairs(path))
        assert list(kept) == ["sub/1.jpg", "./sub/1.jpg"]
        assert dropped == wanted


def test_dirty_lines(tmp_path):
    (tmp_path / "x.jpg").write_bytes(picture())
    good = {"file_name": "x.jpg", "caption": "a dog", "uid": "a"}
    path = lines(
        tmp_path / "t.jsonl", good, b"{", b"[1]", b'{"uid": "\xff"}', b"", good | {"uid": 5},
        good | {"caption": 5, "uid": "c"}, {"uid": "d"}, good | {"uid": float("nan")},
    )  # fmt: skip
    kept, dropped, ends = read(open_pairs(path))
    assert list(kept) == ["a", "5"]
    assert dropped == {
        "t/1": reasons.BAD_JSON,
        "t/2": reasons.BAD_JSON,
        "t/3": reasons.BAD_JSON,
        "t/5": reasons.BAD_TEXT,
        "t/6": reasons.NO_PICTURE,
        "t/7": reasons.NO_ID,
    }
    assert ends == [End(total=8)]


def test_fields_that_the_first_lines_lack(tmp_path):
    (tmp_path / "x.jpg").write_bytes(picture())
    odd = {"note": {"a": [1, "b"]}, "image": None, "mixed": [1, "b"], "on": True}
    path = lines(tmp_path / "t.jsonl", b"{", odd, {"image": "x.jpg"}, odd | {"texts": ["a dog"]},
                 {"image": "x.jpg", "texts": ["a dog", "a cat"]})  # fmt: skip
    kept, dropped, _ = read(open_pairs(path))
    assert kept == {"t/4": ("a dog", "a cat")}
    assert dropped["t/2"] == reasons.NO_CAPTION


def test_captions_as_categories(tmp_path):
    column = pa.array(["a dog", "a dog"]).dictionary_encode()
    pq.write_table(pa.table({"image": [picture()] * 2, "alt": column}), tmp_path / "t.parquet")
    assert list(read(open_pairs(tmp_path / "t.parquet"))[0].values()) == [("a dog",)] * 2


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("gradmimic.data.pairs.table_files.MAX_BYTES", 100)
    (tmp_path / "x.jpg").write_bytes(picture())
    good = {"image": "x.jpg", "caption": "a dog"}
    kept, dropped, _ = read(open_pairs(lines(tmp_path / "t.jsonl", good, b"{" * 1_000, good)))
    assert (list(kept), dropped) == (["t/0", "t/2"], {"t/1": reasons.BAD_JSON})


def test_a_damaged_parquet_says_what_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr("gradmimic.data.pairs.table_files.SHARD", 1_000)
    rng = np.random.default_rng(0)
    rows = [{"image": rng.bytes(3_000), "caption": "a dog"} for _ in range(300)]
    path = write(tmp_path / "a.parquet", rows, row_group_size=100, compression="none")
    content = bytearray(path.read_bytes())
    middle = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content[middle : middle + 60] = b"\xff" * 60
    path.write_bytes(content)
    (tmp_path / "b.parquet").write_bytes(b"junk")
    source = open_pairs(tmp_path)
    own = PairReader(
        source, Small(), lengths, batch_size=4, shuffle=False, seed=0, workers=0, mixed=False
    )
    assert [(batch.shard, len(batch), batch.last) for batch in own] == [(0, 0, True), (1, 0, True)]
    census = own.census
    assert census.dropped == {reasons.UNDECODABLE: census.seen}
    assert 0 < census.seen < 300
    assert census.total == 300
    assert [own.fault for own in census.faults] == [reasons.DAMAGED, reasons.NOT_OPENED]
    assert census.unknown == ["b"]


def test_columns_are_found_or_named(tmp_path):
    row = {"first": picture(), "second": picture(), "alt": "one", "title": "two", "n": 3}
    path = write(tmp_path / "t.parquet", [row])
    with pytest.raises(
        DataError, match=r"column of pictures .* several: first, second. Name it wi"
    ):
        open_pairs(path)
    with pytest.raises(DataError, match=r"column of captions .* several: alt, title. .* text="):
        open_pairs(path, image="first")
    with pytest.raises(DataError, match=r"has no column 'alx'; it has first \(binary\)"):
        open_pairs(path, image="first", text="alx")
    kept, _, _ = read(open_pairs(path, image="first", text="alt", id="n"))
    assert kept == {"3": ("one",)}
    write(path, [{"n": 3}])
    with pytest.raises(
        DataError, match=r"column of pictures or their paths .*none among n \(int64"
    ):
        open_pairs(path)
    with pytest.raises(DataError, match=r"no row of .*e.jsonl can be read"):
        open_pairs(lines(tmp_path / "e.jsonl"))


def test_a_folder_of_pictures_and_texts(tmp_path, monkeypatch):
    monkeypatch.setattr("gradmimic.data.pairs.folder.SHARD", 3)
    files = {
        "cats/1.jpg": picture(), "cats/1.txt": b"a cat", "cats/1.json": b'{"url": "x"}',
        "cats/2.PNG": picture(form="PNG"), "cats/2.txt": b"a cat",
        "dogs/1.webp": picture(form="WEBP"), "dogs/1.TXT": b"a dog",
        "dogs/2.jpg": picture(), "dogs/3.txt": b"a dog", "dogs/4.jpg": b"", "dogs/4.txt": b"x",
        "dogs/5.jpg": picture(), "dogs/5.png": picture(form="PNG"), "dogs/5.txt": b"x",
        "dogs/6.jpg": picture(), "dogs/6.JPG": picture(), "dogs/6.txt": b"x",
        ".hidden.jpg": b"x", "README.md": b"x",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    source = open_pairs(tmp_path)
    assert list(source.shards) == ["00000", "00001", "00002"]
    kept, dropped, ends = read(source)
    assert kept == {"cats/1": ("a cat",), "cats/2": ("a cat",), "dogs/1": ("a dog",)}
    assert dropped == {
        "dogs/2": reasons.NO_CAPTION,
        "dogs/3": reasons.NO_PICTURE,
        "dogs/4": reasons.UNDECODABLE,
        "dogs/5": reasons.SEVERAL,
        "dogs/6": reasons.SEVERAL,
    }
    assert ends == [End(), End(), End()]
    assert next(source.read(0)).meta == {"url": "x"}
    assert len(find_duplicates(source)) == 0


@pytest.fixture
def captioned():
    datasets = pytest.importorskip("datasets", reason="needs the extra 'datasets'")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.Value("string"),
            "n": datasets.Value("int64"),
        }
    )
    content = {
        "image": [{"bytes": picture(), "path": None}, {"bytes": b"junk", "path": "x.jpg"}] * 3,
        "caption": ["a dog", "a cat", "a cow", "a bee", "", "an ox"],
        "n": range(6),
    }
    return datasets.Dataset.from_dict(content, features=features)


def test_a_saved_hugging_face_data_set(tmp_path, captioned, monkeypatch):
    monkeypatch.setattr("gradmimic.data.pairs.hub.SHARD", 4)
    captioned.save_to_disk(tmp_path / "saved", max_shard_size=1_000)
    source = open_pairs(tmp_path / "saved")
    assert [source.expected(n) for n in range(len(source))] == [4, 2]
    kept, dropped, _ = read(source)
    assert kept == {"0": ("a dog",), "2": ("a cow",)}
    assert dropped["1"] == reasons.UNDECODABLE
    assert dropped["4"] == reasons.EMPTY_CAPTION
    assert list(read(open_pairs(tmp_path / "saved", id="n"))[0]) == ["0", "2"]
    own = PairReader(
        source, Small(), lengths, batch_size=4, shuffle=True, seed=0, workers=2, mixed=False
    )
    assert sorted(one for batch in own for one in batch.ids) == ["0", "2"]


def test_splits(tmp_path, captioned):
    import datasets

    both = {"validation": captioned.select(range(2)), "test": captioned}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "both")
    with pytest.raises(DataError, match=r"has the splits validation, test. Name one: .*/<split>"):
        open_pairs(tmp_path / "both")
    assert list(read(open_pairs(tmp_path / "both" / "validation"))[0]) == ["0"]
    datasets.DatasetDict({"train": captioned, "test": captioned}).save_to_disk(tmp_path / "t")
    assert list(read(open_pairs(tmp_path / "t"))[0]) == ["0", "2"]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_the_shards_of_a_stream_once(captioned, workers):
    stream = captioned.select(range(0, 4, 2)).to_iterable_dataset(num_shards=2)
    source = HubSource("stream", stream, None, None, None)
    own = PairReader(
        source, Small(), lengths, batch_size=4, shuffle=True, seed=0, workers=workers, mixed=False
    )
    assert sorted(one for batch in own for one in batch.ids) == ["0/0", "1/0"]


def test_a_data_set_on_the_hub(captioned, monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, *, revision, split, streaming):
        asked.append((name, revision, split, streaming))
        if name == "me/none":
            raise datasets.exceptions.DatasetNotFoundError("there is none")
        return captioned.to_iterable_dataset(num_shards=3)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = open_pairs("hf://datasets/me/pairs@main:test")
    assert asked == [("me/pairs", "main", "test", True)]
    assert len(source) == 3
    kept, dropped, _ = read(source)
    assert kept == {"0/0": ("a dog",), "1/0": ("a cow",)}
    assert dropped["2/0"] == reasons.EMPTY_CAPTION
    with pytest.raises(DataError, match=r"cannot open hf://datasets/me/none: there is none"):
        open_pairs("hf://datasets/me/none")
    assert asked[-1] == ("me/none", None, "train", True)


def test_sources_can_be_pickled_for_workers(tmp_path, captioned):
    (tmp_path / "x.jpg").write_bytes(picture())
    (tmp_path / "x.txt").write_text("a dog")
    row = {"image": "x.jpg", "caption": "a dog"}
    captioned.select([0]).save_to_disk(tmp_path / "saved")
    write(tmp_path / "t.parquet", [row])
    shard(tmp_path / "s" / "0.tar", sample("0"))
    for data in (
        lines(tmp_path / "t.jsonl", row),
        tmp_path / "t.parquet",
        tmp_path / "saved",
        f"file://{tmp_path}/s",
        f"{tmp_path}/x.*",
    ):
        source = open_pairs(data)
        again = pickle.loads(pickle.dumps(source))  # noqa: S301 — made here
        assert list(again.records(0)) == list(source.records(0))
        assert len(list(again.records(0))) == 2


def test_real_pairs(shared_data):
    source = open_pairs(shared_data / "flickr8k" / "pairs.parquet", id="image_id")
    items = list(source.records(0))
    assert len(items) == 801
    assert items[-1] == End(total=800)
    assert all(len(item.texts) == 5 for item in items[:-1])
    first = next(source.read(0))
    assert first.image.mode == "RGB"
    assert len(set(source.ids(0))) == 800
