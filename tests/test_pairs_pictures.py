"""Pictures from strangers: decoded upright in RGB, or refused before they cost anything."""

import io
import struct
import zlib

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="needs the extra 'images'")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from web import picture  # noqa: E402

from gradmimic.data.pairs import reasons  # noqa: E402
from gradmimic.data.pairs.picture import decode  # noqa: E402


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width, height):
    """Write the header of a PNG of that size, and no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 100) + b"IDAT"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", reasons.UNDECODABLE),
        (b"<svg></svg>", reasons.UNDECODABLE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", reasons.UNDECODABLE),
        (picture()[:100], reasons.UNDECODABLE),
        (picture()[:-100], reasons.UNDECODABLE),
        (picture(form="PNG")[:-30], reasons.UNDECODABLE),
        (picture(form="WEBP")[:-10], reasons.UNDECODABLE),
        (png(20, 20), reasons.UNDECODABLE),
        (png(8_001, 8_000), reasons.TOO_MANY_PIXELS),
        (png(12_000, 12_000), reasons.TOO_MANY_PIXELS),  # Pillow warns
        (png(60_000, 60_000), reasons.TOO_MANY_PIXELS),  # Pillow refuses
        (png(1, 101), reasons.TOO_NARROW),
        (png(60_000, 1), reasons.TOO_NARROW),
        (png(0, 5), reasons.UNDECODABLE),
    ],
)
def test_refused(content, reason):
    assert decode(content) == reason
    assert decode(content, near=8) == reason


WHOLE = [
    picture(size=(40, 30), form=form) for form in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
]


@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
)
def test_no_damage_raises(content, changes, share):
    damaged = bytearray(content)
    for place, value in changes:
        damaged[int(place * (len(damaged) - 1))] = value
    got = decode(bytes(damaged[: int(share * len(damaged))]), near=4)
    assert isinstance(got, str) or got.mode == "RGB"


def test_a_huge_animation():
    frames = [Image.new("RGB", (20, 20), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    content = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    assert content[12:16] == b"VP8X"
    content[24:30] = 2 * (16_000).to_bytes(3, "little")  # of the canvas
    assert decode(bytes(content)) == reasons.TOO_MANY_PIXELS


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_picture(form):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    red, _, blue = decode(content).getpixel((5, 5))
    assert red > 200 > 50 > blue


@pytest.mark.parametrize(
    ("image", "form"),
    [
        (Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG"),
        (Image.new("RGBA", (20, 20), (250, 0, 0, 128)), "PNG"),
        (Image.new("RGB", (20, 20), (250, 0, 0)).quantize(4), "PNG"),
        (Image.new("L", (20, 20), 90), "JPEG"),
        (Image.new("LA", (20, 20), (90, 10)), "PNG"),
        (Image.new("1", (20, 20), 1), "PNG"),
        (Image.fromarray(np.full((20, 20), 90 * 256, np.uint16)), "PNG"),
    ],
    ids=lambda value: getattr(value, "mode", value),
)
def test_every_kind_becomes_rgb(image, form):
    got = decode(encoded(image, form))
    assert (got.mode, got.size) == ("RGB", (20, 20))
    wanted = {"L": (90,) * 3, "LA": (90,) * 3, "1": (255,) * 3, "I;16": (90,) * 3}
    expected = wanted.get(image.mode, (250, 0, 0))
    assert np.abs(np.array(got.getpixel((5, 5))) - expected).max() < 8


def test_a_palette_with_transparent_bytes():
    image = Image.new("P", (20, 20), 0)
    image.putpalette([250, 0, 0, 0, 250, 0])
    content = encoded(image, "PNG", transparency=bytes([0, 255]))
    assert decode(content).getpixel((3, 3)) == (250, 0, 0)


def test_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the left half of the stored picture is the top
    image = Image.new("RGB", (160, 80))
    image.paste((255, 255, 255), (0, 0, 80, 80))
    content = encoded(image, "JPEG", exif=exif)
    for near in (0, 16):
        got = decode(content, near)
        width, height = got.size
        assert height == 2 * width
        assert min(got.getpixel((width // 2, height // 4))) > 200
        assert max(got.getpixel((width // 2, 3 * height // 4))) < 50


def test_a_large_jpeg_is_decoded_small():
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    content = encoded(coarse.resize((640, 480)), "JPEG", quality=95)
    whole, small = decode(content), decode(content, near=30)
    assert whole.size == (640, 480)
    assert min(small.size) >= 2 * 30
    assert small.size < whole.size
    assert decode(content, near=300).size == whole.size
    difference = np.subtract(whole.resize((40, 30)), small.resize((40, 30)), dtype=np.float32)
    assert np.abs(difference).mean() < 2
