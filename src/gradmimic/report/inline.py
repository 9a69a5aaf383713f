r"""What enters a page as it is: scripts, styles and data, each made safe for where it stands.

policy   script-src 'sha256-' base64(SHA-256(script)): this script runs, and no other
data     JSON with \u003c for <, so that no text within can end its element
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from gradmimic.extras import import_extra

_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


def source(name: str) -> str:
    """Read a file of this folder: a template, a script or a style sheet."""
    return (files("gradmimic.report") / name).read_text(encoding="utf-8")


def policy(scripts: Sequence[str]) -> str:
    """Return the content security policy of a page that holds these scripts and nothing else.

    Args:
        scripts: the text of each, as it stands in the page.

    Returns:
        A policy that allows no request, no other script, and no code made of text.

    Example:
        >>> policy([])
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        >>> policy(["let a;"])[20:53]
        "script-src 'sha256-81WALLbUROF1pW"
    """
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in scripts
    ]
    own = [f"script-src {' '.join(hashes)}"] if hashes else []
    return "; ".join(["default-src 'none'", *own, "style-src 'unsafe-inline'", "img-src data:"])


def json_block(element_id: str, value: Any) -> Any:
    r"""Return data as an element that is no script, for a script of the page to read.

    Args:
        element_id: its id; ours, never from data.
        value: plain data; numbers are finite.

    Returns:
        Markup, which templates take as it is.

    Raises:
        ValueError: a number is NaN or infinite.
        MissingExtraError: markupsafe is not installed.

    Example:
        >>> print(json_block("names", ["</script>"]))
        <script type="application/json" id="names">["\u003c/script\u003e"]</script>
    """
    markup = import_extra("markupsafe", "report").Markup
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return markup(
        f'<script type="application/json" id="{element_id}">{text.translate(_ESCAPES)}</script>'
    )
