"""What a shard holds, clean or dirty: every sample once, as a pair or with a reason."""

import functools
import http.server
import io
import json
import pickle
import socket
import tarfile
import threading
import zipfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Image = pytest.importorskip("PIL.Image", reason="needs the extra 'images'")
wds = pytest.importorskip("webdataset", reason="needs the extra 'webdataset'")

from web import link, picture, sample, shard  # noqa: E402

from gradmimic.data.pairs import Dropped, End, Pair, open_pairs, reasons  # noqa: E402
from gradmimic.errors import DataError  # noqa: E402


def read(path, number=0, **columns):
    """Return kept ids, reasons by key, and the end."""
    *items, end = open_pairs(path, **columns).read(number)
    assert isinstance(end, End)
    kept = [item.sample_id for item in items if isinstance(item, Pair)]
    dropped = {item.key: item.reason for item in items if isinstance(item, Dropped)}
    assert all(isinstance(item, Pair | Dropped) for item in items)
    return kept, dropped, end


def read_by_webdataset(path):
    with path.open("rb") as file:
        files = ({**f, "__url__": ""} for f in wds.tariterators.tar_file_iterator(file))
        return list(wds.tariterators.group_by_keys(files))


def test_a_clean_shard(tmp_path):
    path = shard(
        tmp_path / "00000.tar",
        sample("000", "u0", "a dog\n", url="http://x/a"),
        sample("001", "u1", "Ein Hund läuft", picture((0, 0, 255), form="PNG"), "png"),
        sample("002", 7, "a cat", picture((0, 255, 0), form="WEBP"), "webp"),
        sample("sub/003", "u3", "a cat", suffix="JPG"),
    )
    *pairs, end = open_pairs(path).read(0)
    assert [pair.sample_id for pair in pairs] == ["u0", "u1", "7", "u3"]
    assert [pair.text for pair in pairs] == ["a dog", "Ein Hund läuft", "a cat", "a cat"]
    assert pairs[0].meta == {"url": "http://x/a", "uid": "u0"}
    colours = [pair.image.resize((1, 1)).getpixel((0, 0)) for pair in pairs]
    assert [colour.index(max(colour)) for colour in colours] == [0, 2, 1, 0]
    assert end == End()


def test_it_reads_what_webdataset_reads(tmp_path, shared_data):
    path = shared_data / "cc12m" / "cc12m-train-0000.tar"
    theirs = read_by_webdataset(path)
    *ours, end = open_pairs(path).read(0)
    assert end == End()
    assert [p.sample_id for p in ours] == [f"cc12m-train-0000/{s['__key__']}" for s in theirs]
    assert [p.text for p in ours] == [s["txt"].decode() for s in theirs]
    assert [p.meta for p in ours] == [json.loads(s["json"]) for s in theirs]
    for pair, their in zip(ours, theirs, strict=True):
        with Image.open(io.BytesIO(their["jpg"])) as image:
            assert pair.image == image.convert("RGB")
    assert read(path, id="key")[0] == [s["__key__"] for s in theirs]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (sample("x", "u", image=picture()[:-200]), reasons.UNDECODABLE),
        (sample("x", "u", image=b""), reasons.UNDECODABLE),
        (sample("x", "u", ""), reasons.EMPTY_CAPTION),
        (sample("x", "u", " \n\t"), reasons.EMPTY_CAPTION),
        (sample("x", "u", "a" * 10_001), reasons.LONG_CAPTION),
        (sample("x", "u", "a" * 50_000), reasons.LONG_CAPTION),
        (sample("x", "u", b"caf\xe9"), reasons.BAD_TEXT),
        (sample("x", "u", None), reasons.NO_CAPTION),
        (sample("x", "u", None, caption="\ud800"), reasons.BAD_TEXT),
        (sample("x", "u", None, caption=5), reasons.BAD_TEXT),
        (sample("x", "u")[1:], reasons.NO_PICTURE),
        ([("x.json", b'{"uid": "u"}')], reasons.NO_PICTURE),
        ([("x.png", picture(form="PNG")), *sample("x", "u")], reasons.SEVERAL),
        (sample("x"), reasons.NO_ID),
        (sample("x", ""), reasons.NO_ID),
        (sample("x", float("nan")), reasons.NO_ID),
        (sample("x", ["u"]), reasons.NO_ID),
        (sample("x", True), reasons.NO_ID),
        (sample("x", "\ud800"), reasons.NO_ID),
        (sample("x", "u" * 1_001), reasons.NO_ID),
        ([*sample("x"), ("x.json", b"[1]")], reasons.BAD_JSON),
        ([*sample("x"), ("x.json", b"{")], reasons.BAD_JSON),
        ([*sample("x"), ("x.json", b'{"uid": "\xe9"}')], reasons.BAD_JSON),
        ([*sample("x"), ("x.json", b"[" * 100_000)], reasons.BAD_JSON),
        ([*sample("x"), ("x.json", b'{"uid": ' + b"1" * 5_000 + b"}")], reasons.BAD_JSON),
        (sample("x", "good"), reasons.REPEATED),
        (sample("../x", "u"), reasons.UNSAFE_NAME),
        (sample("a/../../x", "u"), reasons.UNSAFE_NAME),
        (sample("/etc/x", "u"), reasons.UNSAFE_NAME),
        (sample("x\n", "u"), reasons.UNSAFE_NAME),
        (sample("x" * 2_000, "u"), reasons.UNSAFE_NAME),
        ([*link("x.jpg", "/etc/passwd"), *sample("x", "u")[1:]], reasons.NOT_A_FILE),
        ([*link("x.jpg", "0.jpg", tarfile.LNKTYPE), *sample("x", "u")[1:]], reasons.NOT_A_FILE),
        ([*link("x.jpg", "", tarfile.CHRTYPE), *sample("x", "u")[1:]], reasons.NOT_A_FILE),
        ([*link("x.jpg", "", tarfile.FIFOTYPE), *sample("x", "u")[1:]], reasons.NOT_A_FILE),
    ],
)  # fmt: skip
def test_a_dirty_sample_among_good_ones(tmp_path, files, reason):
    path = shard(tmp_path / "0.tar", sample("0", "good"), files, sample("9", "also good"))
    kept, dropped, end = read(path)
    assert kept == ["good", "also good"]
    assert list(dropped.values()) == [reason]
    assert end == End()


def test_a_name_of_no_known_encoding(tmp_path):
    path = shard(tmp_path / "0.tar", sample("0", "good"), sample("QQQ", "u"))
    path.write_bytes(path.read_bytes().replace(b"QQQ", b"Q\xffQ").replace(b"\0" * 0, b""))
    content = bytearray(path.read_bytes())
    for start in range(0, len(content), 512):  # the changed headers need new checksums
        if content[start : start + 3] == b"Q\xffQ":
            content[start + 148 : start + 156] = b" " * 8
            total = sum(content[start : start + 512])
            content[start + 148 : start + 156] = f"{total:06o}\0 ".encode()
    path.write_bytes(content)
    kept, dropped, end = read(path)
    assert kept == ["good"]
    assert list(dropped.values()) == [reasons.UNSAFE_NAME]
    assert end == End()


def test_files_that_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("gradmimic.data.pairs.grouped.MAX_BYTES", 5_000)
    monkeypatch.setattr("gradmimic.data.pairs.grouped.MAX_TEXT", 500)
    path = shard(
        tmp_path / "0.tar",
        sample("0", "u0"),
        sample("1", "u1", image=picture() + b"\0" * 5_000),
        sample("2", "u2", "a" * 600),
        sample("3", "u3", url="a" * 600),
        sample("4", "u4"),
    )
    kept, dropped, _ = read(path)
    assert kept == ["u0", "u4"]
    assert dropped == dict.fromkeys("123", reasons.TOO_LARGE)


def test_files_that_are_no_samples_are_counted_apart(tmp_path):
    folder = tarfile.TarInfo("sub")
    folder.type = tarfile.DIRTYPE
    path = shard(
        tmp_path / "0.tar",
        [(folder, b"")],
        [("README.md", b"x"), ("._0.jpg", b"x"), ("__MACOSX/0.jpg", b"x"), ("sub/.DS_Store", b"x")],
        [("./sub/0.cls", b"3"), *sample("./sub/0", "u0")],
    )
    kept, dropped, end = read(path)
    assert (kept, dropped) == (["u0"], {})
    assert end == End(ignored=4)


def test_one_key_twice_or_in_several_folders(tmp_path):
    path = shard(
        tmp_path / "0.tar", sample("0"), sample("a/0"), sample("b/0"), sample("0"), sample("0")
    )
    kept, dropped, _ = read(path)
    assert kept == ["0/0", "0/a/0", "0/b/0"]
    assert dropped == {"0": reasons.REPEATED}
    assert [type(item) for item in open_pairs(path).read(0)].count(Dropped) == 2


def test_a_truncated_shard_gives_what_lies_before(tmp_path):
    samples = [sample(f"{n}", f"u{n}") for n in range(4)]
    content = shard(tmp_path / "0.tar", *samples).read_bytes()
    whole = len(content.rstrip(b"\0")) // 512 * 512 + 512  # without the end mark
    bounds = [content.index(f"{n}.jpg".encode()) for n in range(4)] + [whole]
    seen = set()
    for cut in range(1, whole + 1, 257):
        kept, dropped, end = read(shard(tmp_path / "cut.tar", *samples, cut=cut))
        complete = sum(bound <= cut for bound in bounds[1:])
        begun = sum(bound + 512 <= cut for bound in bounds[:4])
        assert end.fault == (reasons.DAMAGED if begun else reasons.NO_ARCHIVE)
        assert end.detail
        assert complete <= len(kept) <= complete + 1  # a text's padding may be cut off
        assert len(kept) + len(dropped) == begun
        seen |= set(dropped.values())
    assert seen == {reasons.CUT}


def test_a_cut_within_a_file_is_told(tmp_path):
    path = shard(tmp_path / "0.tar", sample("0", "u0"), sample("1", "u1"))
    cut = path.read_bytes().index(b"1.txt") + 512 + 2
    kept, dropped, end = read(shard(path, sample("0", "u0"), sample("1", "u1"), cut=cut))
    assert (kept, dropped) == (["u0"], {"1": reasons.CUT})
    assert (end.fault, end.detail) == (reasons.DAMAGED, "unexpected end of data")


def test_a_damaged_header_does_not_pass_for_the_end(tmp_path):
    path = shard(tmp_path / "0.tar", *(sample(f"{n}", f"u{n}") for n in range(3)))
    content = bytearray(path.read_bytes())
    content[content.index(b"1.jpg") + 150] ^= 0xFF
    path.write_bytes(content)
    kept, _, end = read(path)
    assert kept == ["u0"]
    assert end.fault == reasons.DAMAGED
    assert len(read_by_webdataset(path)) == 1  # without a word


@pytest.mark.parametrize("content", [b"", b"junk" * 1_000, b"<html>404</html>"])
def test_what_is_no_tar(tmp_path, content):
    (tmp_path / "0.tar").write_bytes(content)
    assert read(tmp_path / "0.tar")[2].fault == reasons.NO_ARCHIVE


def test_a_name_that_claims_gigabytes(tmp_path):
    huge = tarfile.TarInfo("././@LongLink")
    huge.type, huge.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    path = shard(tmp_path / "0.tar", sample("0", "u0"))
    content = path.read_bytes()
    end = content.index(b"0.txt") + 1024
    path.write_bytes(content[:end] + huge.tobuf(tarfile.GNU_FORMAT) + b"x" * 5_120)
    kept, _, last = read(path)
    assert kept == ["u0"]
    assert last.fault == reasons.DAMAGED
    assert "a name of 1099511627776 bytes" in last.detail


def test_shards_that_are_not_there(tmp_path):
    shard(tmp_path / "1.tar", sample("0", "u0"))
    source = open_pairs(str(tmp_path / "{0..2}.tar"))
    assert list(source.shards) == ["0", "1", "2"]
    ends = [list(source.read(n))[-1] for n in range(3)]
    assert [end.fault for end in ends] == [reasons.NOT_OPENED, "", reasons.NOT_OPENED]
    assert ends[0].total is None
    (tmp_path / "0_stats.json").write_text(json.dumps({"count": 9, "successes": 5}))
    table = pa.table({"key": ["a", "b", "c"], "status": ["success", "failed", "success"]})
    pq.write_table(table, tmp_path / "2.parquet")
    source = open_pairs(str(tmp_path / "{0..2}.tar"))
    assert [source.expected(n) for n in range(3)] == [5, None, 2]
    assert [list(source.read(n))[-1].total for n in range(3)] == [5, None, 2]


def test_damaged_files_beside_a_shard_tell_nothing(tmp_path):
    path = shard(tmp_path / "0.tar", sample("0", "u0"))
    for stats in (b"", b"[]", b'{"successes": -1}', b'{"successes": "many"}', b"\xff"):
        (tmp_path / "0_stats.json").write_bytes(stats)
        (tmp_path / "0.parquet").write_bytes(stats)
        assert open_pairs(path).expected(0) is None
    assert read(path)[0] == ["u0"]


def test_ids_from_the_parquet_beside_the_shard(tmp_path):
    path = shard(tmp_path / "0.tar", sample("000"), sample("001"), sample("002", "own"))
    table = pa.table({"key": ["000", "002"], "uid": ["u0", "u2"], "status": ["success"] * 2})
    pq.write_table(table, tmp_path / "0.parquet")
    kept, dropped, _ = read(path)
    assert kept == ["u0", "own"]
    assert dropped == {"001": reasons.NO_ID}


def test_where_ids_and_captions_are(tmp_path):
    path = shard(
        tmp_path / "0.tar",
        [*sample("0", "u0", alt=["one", "", "two"], name=5), ("0.syn", b"three")],
    )
    texts = [next(open_pairs(path, text=text).read(0)).texts for text in (None, "alt", "syn")]
    assert texts == [("a red dog",), ("one", "two"), ("three",)]
    assert read(path, id="name")[0] == ["5"]
    assert read(path, image="png")[1] == {"0": reasons.NO_PICTURE}
    assert read(path, text="none")[1] == {"0": reasons.NO_CAPTION}
    with pytest.raises(DataError, match=r"none of the first samples of .* an id called 'other'"):
        open_pairs(path, id="other")


def test_names_tell_shards_of_several_folders_apart(tmp_path):
    for folder in "ab":
        shard(tmp_path / folder / "0.tar", sample("x"))
    shard(tmp_path / "a" / ".hidden.tar", sample("x"))
    source = open_pairs(tmp_path)
    assert list(source.shards) == ["a/0", "b/0"]
    assert [next(source.read(n)).sample_id for n in (0, 1)] == ["a/0/x", "b/0/x"]
    assert list(open_pairs(f"{tmp_path}/*/0.tar").shards) == ["a/0", "b/0"]


def test_a_shard_named_twice_is_read_once(tmp_path):
    shard(tmp_path / "0.tar", sample("0", "u0"))
    assert len(open_pairs(f"{tmp_path}/{{0,0}}.tar")) == 1


def test_urls(tmp_path):
    shard(tmp_path / "0.tar", sample("0", "u0"))
    shard(tmp_path / "1.tar", sample("1", "u1"))
    memory = fsspec.filesystem("memory")
    for name in ("0.tar", "1.tar"):
        memory.pipe(f"/pool/{name}", (tmp_path / name).read_bytes())
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        archive.write(tmp_path / "0.tar", "0.tar")
        archive.write(tmp_path / "1.tar", "1.tar")
    for url in (
        f"file://{tmp_path}/{{0..1}}.tar",
        "memory://pool/*.tar",
        "memory://pool",
        f"zip://{{0..1}}.tar::file://{tmp_path}/both.zip",
        f"zip://*.tar::file://{tmp_path}/both.zip",
    ):
        source = open_pairs(url)
        assert list(source.shards) == ["0", "1"], url
        assert [next(source.read(n)).sample_id for n in range(2)] == ["u0", "u1"], url
    memory.rm("/pool", recursive=True)


def test_a_url_on_the_network(tmp_path):
    pytest.importorskip("aiohttp", reason="fsspec needs it for http")
    shard(tmp_path / "0.tar", sample("0", "u0"))
    shard(tmp_path / "1.tar", sample("1", "u1"), cut=1_500)
    (tmp_path / "1_stats.json").write_text('{"successes": 4}')
    handler = functools.partial(Quiet, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{{0..2}}.tar"
        source = open_pairs(url)
        items = [list(source.read(n)) for n in range(3)]
        server.shutdown()
    assert list(source.shards) == ["0", "1", "2"]
    assert [own[-1].fault for own in items] == ["", reasons.DAMAGED, reasons.NOT_OPENED]
    assert items[0][0].sample_id == "u0"
    assert items[1][-1].total == 4


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_no_url_runs_a_program_or_opens_a_socket(tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    for url in (f"pipe:touch {marker}; cat x.tar", f"pipe:touch {marker}"):
        with pytest.raises(DataError, match="no file or folder pipe:"):
            open_pairs(url)
    with pytest.raises(DataError, match="Give a path, or a URL of a kind that fsspec knows"):
        open_pairs("nosuch://x/0.tar")
    assert not marker.exists()


def test_what_is_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no file or folder .*none.tar; check the path"):
        open_pairs(tmp_path / "none.tar")
    with pytest.raises(DataError, match=r"no file matches .*x\*\.tar"):
        open_pairs(f"{tmp_path}/x*.tar")
    with pytest.raises(
        DataError, match=r"holds no pairs: no file among 0 ends in \.tar, \.parquet"
    ):
        open_pairs(tmp_path)
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"expected pairs of one kind, .*means files \.csv"):
        open_pairs(tmp_path / "x.csv")


def test_members_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (socket.socket, ())

    bad = pickle.dumps(Bomb())
    path = shard(tmp_path / "0.tar", [*sample("0", "u0"), ("0.pyd", bad), ("0.pickle", bad)])
    pair = next(open_pairs(path).read(0))
    assert pair.meta == {"uid": "u0"}
