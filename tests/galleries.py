"""Pages with a gallery of made-up samples."""

import io

import numpy as np
from selections import make

from gradmimic.report import Frame, write_report
from gradmimic.report.gallery import Gallery, arrange

CLASSES = ("cat", "dog", "two-toed_sloth")
LOG = "0123456789abcdef"


def encoded(colour, size=(8, 6), kind="PNG"):
    """The bytes of a picture of one colour."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def labelled(n=120, *, ids=None, end=10, classes=CLASSES, **changes):
    """A gallery of labelled samples: the lowest third is removed, and of these some are bad."""
    chance = np.random.default_rng(0)
    ids = [f"s{row:05}" for row in range(n)] if ids is None else ids
    scores = np.linspace(-1, 1, n)[chance.permutation(n)]
    arranged = arrange(make(ids, (scores >= -1 / 3).tolist(), scores).table, -1 / 3, end=end)
    columns = {
        "true": chance.integers(0, len(classes), n),
        "suggested": chance.integers(0, len(classes), n),
    }
    columns["given"] = np.where(chance.random(n) < 0.8, columns["true"], columns["suggested"])
    return Gallery(**{
        "run": "pets", "log": LOG, "arranged": arranged, "classes": classes,
        "text": lambda row: f"text of row {row}", **columns, **changes,
    })  # fmt: skip


def write_page(path, gallery):
    """Write a page that holds this gallery."""
    write_report(path, Frame("pets", "A made-up run.", gallery=gallery))
    return path
