"""A picture from a stranger, decoded to RGB without trusting a word of its header."""

import io
import warnings
from typing import TYPE_CHECKING

from gradmimic.data.images import FORMATS, MAX_PIXELS, eight_bit
from gradmimic.data.pairs.reasons import MAX_RATIO, TOO_MANY_PIXELS, TOO_NARROW, UNDECODABLE

if TYPE_CHECKING:
    from PIL.Image import Image


def decode(content: bytes, near: int = 0) -> "Image | str":
    """Decode a picture, upright and in RGB.

    Args:
        content: the picture's file.
        near: the size in pixels that it will be scaled to; a JPEG at least four times as large on
            both sides is decoded at a half, a quarter or an eighth. 0 decodes it as it is.

    Returns:
        The picture, or the reason why there is none.

    Example:
        >>> decode(b"junk")
        'the picture cannot be decoded'
    """
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata of a picture that decodes is no news
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    return TOO_MANY_PIXELS
                if max(width, height) > MAX_RATIO * min(width, height):
                    return TOO_NARROW
                if near:
                    image.draft(None, (2 * near, 2 * near))
                ImageOps.exif_transpose(image, in_place=True)
                return eight_bit(image).convert("RGB")
        except Image.DecompressionBombError:
            return TOO_MANY_PIXELS
        # What a decoder raises on damaged bytes is open-ended, and none of it may end the run.
        except Exception:
            return UNDECODABLE
