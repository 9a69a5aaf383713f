"""The documentation site: the Markdown of this folder, and the docstrings of the package.

python -m sphinx -W --keep-going docs site

What it writes needs no network and no server: no fonts, scripts or pictures of others, and the
search is Sphinx's own. Commands and keys are those of the real command line and dataclasses.
"""

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import _generated  # beside this file

project = "gradmimic"
author = "the gradmimic authors"
release = version = installed("gradmimic")
language = "en"
copyright = author  # noqa: A001  Sphinx calls it that

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_*"]
smartquotes = False  # it makes a dash of every --flag
highlight_language = "text"

nitpicky = True  # every name of ours that is linked must lead somewhere
nitpick_ignore_regex = [
    (r"py:.*", r"(?!gradmimic\.).*"),  # other libraries' names: their lists are on the network
    (r"py:.*", r"gradmimic\..*\.(Batch|Subset|KeptIds|Ids|Choice|Key|Keep|T|Given|Params|Table)"),
]

myst_heading_anchors = 4  # links such as engines.md#what-they-cost, as forges make them

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Source"]

html_theme = "furo"
html_title = "gradmimic"
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
pygments_style = "default"
pygments_dark_style = "github-dark"


def setup(app):
    """Fill in what is made of the package itself; keep formulas and links in docstrings."""
    app.connect("source-read", _generated.fill)
    app.connect("env-get-outdated", lambda *_: {"reference/commands", "reference/keys"})
    app.connect("doctree-read", _generated.dashes)
    app.connect("autodoc-process-docstring", _generated.keep_formulas, priority=100)
    app.connect("autodoc-process-docstring", _generated.link_public_names, priority=101)
