import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradmimic.data import read_samples
from gradmimic.errors import DataError

Image = pytest.importorskip("PIL.Image", reason="needs the extra 'images'")
DATA = Path(os.environ.get("GRADMIMIC_DATA", Path(__file__).parents[2] / "shared" / "data"))


def encoded(colour, suffix="png", size=(20, 10), mode="RGB", **options):
    buffer = io.BytesIO()
    form = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
    Image.new(mode, size, colour).save(buffer, form, **options)
    return buffer.getvalue()


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def folder(tmp_path):
    for path, colour in {
        "b/1.png": RED,
        "b/sub/2.JPG": RED,
        "a/3.webp": BLUE,
        "a/4.bmp": BLUE,
    }.items():
        target = tmp_path / "set" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded(colour, target.suffix[1:].lower()))
    return tmp_path / "set"


def bomb():
    """Write the header of a PNG of 60,000 × 60,000 pixels: some bytes that want 10 GB."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 100) + b"IDAT"


def test_a_folder_per_class(folder):
    samples = read_samples(folder, image_size=8)
    assert samples.ids.tolist() == ["a/3.webp", "a/4.bmp", "b/1.png", "b/sub/2.JPG"]
    assert samples.classes == ("a", "b")
    assert samples.labels.tolist() == [0, 0, 1, 1]
    assert samples.inputs.shape == (4, 3, 8, 8)
    assert samples.inputs.dtype == np.uint8
    mean = samples.inputs.mean(axis=(2, 3))  # [n, c]
    assert np.abs(mean - np.array([BLUE, BLUE, RED, RED])).max() < 8  # JPEG and WebP are lossy
    assert samples.shown is not None
    assert samples.shown.image(2) == (folder / "b/1.png").read_bytes()
    assert samples.skipped == ()


def test_numbered_class_folders_keep_number_order(tmp_path):
    for name in ("10", "9", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(encoded(RED))
    assert read_samples(tmp_path).classes == ("2", "9", "10")


def test_damaged_pictures_are_left_out_and_listed(folder):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a" / "cut.png")
    whole = (folder / "a" / "cut.png").read_bytes()
    (folder / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "a" / "bomb.png").write_bytes(bomb())
    (folder / "b" / "text.png").write_text("not a picture")
    (folder / "b" / "empty.jpg").write_bytes(b"")
    (folder / "b" / "photo.heic").write_bytes(b"x")
    (folder / "stray.png").write_bytes(encoded(GREEN))
    (folder / "b" / ".DS_Store").write_bytes(b"x")
    labels = folder.parent / "labels.txt"  # one line per picture file, the damaged ones too
    labels.write_text("s\nt\nu\nv\nw\nx\ny\nz\n")

    samples = read_samples(folder, labels=str(labels), image_size=8)
    assert samples.ids.tolist() == ["a/3.webp", "a/4.bmp", "b/1.png", "b/sub/2.JPG"]
    assert [samples.classes[k] for k in samples.labels] == ["s", "t", "w", "y"]
    assert samples.shown is not None
    assert samples.shown.image(3) == (folder / "b/sub/2.JPG").read_bytes()
    reasons = {skipped.sample_id: skipped.reason for skipped in samples.skipped}
    assert set(reasons) == {
        *("a/cut.png", "a/bomb.png", "b/text.png", "b/empty.jpg", "b/photo.heic", "stray.png")
    }
    assert "truncated" in reasons["a/cut.png"]
    assert "decompression bomb" in reasons["a/bomb.png"]
    assert "not a picture in any known" in reasons["b/text.png"]
    assert "no bytes" in reasons["b/empty.jpg"]
    assert "not a picture file" in reasons["b/photo.heic"]
    assert reasons["stray.png"] == "in no class folder"


def test_it_is_an_error_when_no_picture_is_left(tmp_path):
    with pytest.raises(DataError, match=r"one sub-folder of pictures per class, such as cat/1.jpg"):
        read_samples(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(bomb())
    with pytest.raises(
        DataError, match=r"none of the 1 pictures .* decoded; the first: .* decompression bomb"
    ):
        read_samples(tmp_path)


@pytest.mark.parametrize("struct_column", [False, True])
def test_a_parquet_of_encoded_pictures(tmp_path, struct_column):
    pictures = [encoded(RED, "jpg"), None, b"junk", encoded(BLUE, "gif"), encoded(GREEN)]
    cells = [{"bytes": p, "path": None} for p in pictures] if struct_column else pictures
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if struct_column else pa.binary()
    table = pa.table(
        {"image": pa.array(cells, kind), "label": [3, 3, 3, 1, 2], "id": list("abcde")}
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    samples = read_samples(tmp_path / "t.parquet", ids="id", true_labels="label", image_size=4)
    assert samples.ids.tolist() == ["a", "d", "e"]
    assert samples.labels.tolist() == [2, 0, 1]
    assert samples.inputs.mean(axis=(2, 3)).argmax(axis=1).tolist() == [0, 2, 1]
    assert [skipped.sample_id for skipped in samples.skipped] == ["b", "c"]
    assert samples.shown is not None
    assert [samples.shown.image(row) for row in range(3)] == [pictures[0], pictures[3], pictures[4]]
    assert samples.take(np.array([2])).shown.image(0) == pictures[4]


def test_the_picture_column_is_found_or_asked_for(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [encoded(RED)], "b": [encoded(BLUE)], "label": [0]}), path)
    with pytest.raises(DataError, match="found several such columns: a, b; name one"):
        read_samples(path)
    assert read_samples(path, inputs="b").inputs[0, 2].min() == 255
    with pytest.raises(DataError, match="no column 'c' of encoded pictures"):
        read_samples(path, inputs="c", kind="images")
    pq.write_table(pa.table({"a": [1.0], "label": [0]}), path)
    with pytest.raises(DataError, match="expected a column of encoded pictures"):
        read_samples(path, kind="images")
    np.save(tmp_path / "x.npy", np.zeros((1, 1)))
    (tmp_path / "y.txt").write_text("0\n")
    with pytest.raises(DataError, match=r"images come as a folder or a .parquet"):
        read_samples(tmp_path / "x.npy", labels="y.txt", kind="images")


def test_grey_upright_and_sixteen_bits(tmp_path):
    (tmp_path / "k").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the left half of the stored picture is the top
    picture = Image.new("L", (16, 8), 0)
    picture.paste(255, (0, 0, 8, 8))
    picture.save(tmp_path / "k" / "1.png", exif=exif)
    deep = np.full((4, 4), 32_768, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "k" / "2.png")
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "k" / "3.png")
    grey = read_samples(tmp_path, channels=1, image_size=8).inputs
    assert grey.shape == (3, 1, 8, 8)
    assert grey[0, 0, :3].min() > 200
    assert grey[0, 0, 5:].max() < 50
    assert set(grey[1].ravel().tolist()) == {128}
    assert read_samples(tmp_path).inputs.shape == (3, 3, 32, 32)


def test_a_folder_is_not_features(folder):
    with pytest.raises(DataError, match=r"features come as .*; .* is a folder"):
        read_samples(folder, kind="features")
    with pytest.raises(DataError, match="is a folder and has no columns"):
        read_samples(folder, inputs="image")
    with pytest.raises(DataError, match="at least 1 pixel; got 0"):
        read_samples(folder, image_size=0)


@pytest.mark.skipif(not (DATA / "dtd10").is_dir(), reason="set GRADMIMIC_DATA to the data")
def test_dtd10_images():
    samples = read_samples(DATA / "dtd10" / "images.parquet", labels="class_name", image_size=16)
    assert samples.inputs.shape == (1200, 3, 16, 16)
    assert np.bincount(samples.labels).tolist() == [120] * 10
    assert samples.classes[0] == "banded"
    assert samples.skipped == ()
