"""Web shards for tests, clean and dirty."""

import io
import json
import tarfile
from functools import lru_cache

import torch
from PIL import Image


@lru_cache
def picture(colour=(255, 0, 0), size=(24, 16), form="JPEG", mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, form)
    return buffer.getvalue()


def sample(key, uid=None, text="a red dog", image=None, suffix="jpg", **meta):
    """Return the files of a sample, as img2dataset orders them."""
    if uid is not None:
        meta["uid"] = uid
    files = [(f"{key}.{suffix}", picture() if image is None else image)]
    if meta:
        files.append((f"{key}.json", json.dumps(meta).encode()))
    if text is not None:
        files.append((f"{key}.txt", text if isinstance(text, bytes) else text.encode()))
    return files


def shard(path, *samples, cut=None):
    """Write samples, each a list of files (name or TarInfo, content), as a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (file for files in samples for file in files):
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if member.isreg():
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    whole = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(whole if cut is None else whole[:cut])
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return [(member, b"")]


class Small:
    """A transform to 8 × 8 pixels that can be pickled for workers."""

    def __call__(self, image):
        assert image.mode == "RGB"
        size = image.resize((8, 8))
        return (
            torch.frombuffer(bytearray(size.tobytes()), dtype=torch.uint8)
            .reshape(8, 8, 3)
            .permute(2, 0, 1)
            / 255
        )


def lengths(texts):
    return {"length": torch.tensor([[len(text)] for text in texts]).reshape(-1, 1)}
