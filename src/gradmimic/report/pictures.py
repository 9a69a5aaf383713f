"""Pictures for the page: decoded and encoded anew, so that no byte of the source reaches it."""

import base64
import io
import warnings

from gradmimic.extras import import_extra

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # none that starts a program
_MAX_PIXELS = 64_000_000
_SIDE = 192
_SMALL = 64  # pictures up to this side stay as they are, in PNG: JPEG would smear their few pixels


def data_uri(content: bytes) -> str | None:
    """Turn the bytes of a picture file into a small ``data:`` URI.

    Args:
        content: an encoded picture of any type; its claims about itself are not trusted.

    Returns:
        A PNG or JPEG of at most 192 × 192 pixels as a URI, or None where it cannot be decoded.
    """
    image_module = import_extra("PIL.Image", "images")
    try:
        with (
            warnings.catch_warnings(),
            image_module.open(io.BytesIO(content), formats=_FORMATS) as image,
        ):
            if image.width * image.height > _MAX_PIXELS:
                return None
            warnings.simplefilter("ignore")  # odd metadata of a picture that decodes is no news
            image.draft("RGB", (_SIDE, _SIDE))
            tiny = max(image.size) <= _SMALL
            picture = image.convert("RGB")
        picture.thumbnail((_SIDE, _SIDE))
        clean = image_module.new("RGB", picture.size)  # leaves comments and profiles behind
        clean.paste(picture)
        buffer = io.BytesIO()
        kind = "PNG" if tiny else "JPEG"
        clean.save(buffer, kind, quality=82)
    # What a decoder raises on damaged bytes is open-ended; a picture less is no reason to fail.
    except Exception:
        return None
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
