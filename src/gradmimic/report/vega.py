"""The libraries that draw the charts: Vega, Vega-Lite and Vega-Embed, as one script.

They come with vl-convert, so a page needs no network. Expressions of a chart are interpreted
(``ast: true`` in charts.js), never compiled, so the page's policy can forbid code made of text.
"""

from functools import cache

from gradmimic.extras import import_extra


@cache  # putting it together takes seconds
def bundle() -> str:
    """Return the script, about 900 kB.

    Raises:
        MissingExtraError: vl-convert is not installed.
    """
    script: str = import_extra("vl_convert", "report").javascript_bundle()
    # In strings, where alone these can stand, a backslash before / or ! changes nothing.
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
