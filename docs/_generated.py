"""Pages that are made of the package when the site is built: its commands and its keys."""

import re
import subprocess
import sys
from dataclasses import MISSING, fields
from itertools import groupby

from docutils import nodes

import gradmimic
from gradmimic.run.config import TASKS

PUBLIC = re.compile(rf":(class|func):`({'|'.join(gradmimic.__all__)})`")
GAP = re.compile(r"\S {3,}\S")
SECTION = re.compile(r"(Args|Attributes|Example|Examples|Raises|Returns|Source|Yields):")


def fill(app, page, source):
    """Put what is made in the place of its mark; Sphinx calls this for every page that it reads."""
    for mark, made in (("<!-- commands -->", commands), ("<!-- keys -->", keys)):
        if page.startswith("reference/") and mark in source[0]:
            source[0] = source[0].replace(mark, made())


def commands():
    """Return every command with its flags, as typer's own tool writes them down."""
    tool = [sys.executable, "-m", "typer", "gradmimic.cli", "utils", "docs", "--name", "gradmimic"]
    text = subprocess.run(tool, check=True, capture_output=True, encoding="utf-8").stdout  # noqa: S603
    return re.sub(r"\A# .*\n", "", text)


def keys():
    """Return a table of the keys of each task, by their groups, as the dataclasses declare them."""
    lines = []
    for task, kind in TASKS.items():
        lines += [f"## Task `{task}`", ""]
        groups = {}
        for key in fields(kind):
            groups.setdefault(key.metadata["group"], []).append(key)
        for group, members in groups.items():
            lines += [
                f"### {group}: `{task}`",
                "",
                "| key | default | what |",
                "| --- | --- | --- |",
            ]
            for key in members:
                text = key.metadata["help"].replace("|", r"\|")
                lines.append(f"| `{key.name}` | {_default(key)} | {text} |")
            lines.append("")
    return "\n".join(lines)


def _default(key):
    value = key.default_factory() if key.default is MISSING else key.default
    if isinstance(value, bool):
        value = str(value).lower()  # as YAML writes it
    return "" if value in (None, "") else f"`{value}`"


def keep_formulas(app, what, name, obj, options, lines):
    """Make literal blocks of the paragraphs of a docstring that are formulas, code or tables.

    These are indented, or hold wide gaps. What follows the first section (``Args:``) is napoleon's.
    """
    end = next((i for i, line in enumerate(lines) if SECTION.fullmatch(line)), len(lines))
    head = []
    for blank, group in groupby(lines[1:end], lambda line: not line.strip()):
        paragraph = list(group)
        if not blank and (paragraph[0].startswith("    ") or any(map(GAP.search, paragraph))):
            paragraph = ["::", "", *(f"    {line}" for line in paragraph)]
        head += paragraph
    lines[1:end] = head


def link_public_names(app, what, name, obj, options, lines):
    """Let docstrings name what ``gradmimic`` exports without its package, wherever they stand."""
    lines[:] = [PUBLIC.sub(r":\1:`~gradmimic.\2`", line) for line in lines]


def dashes(app, doctree):
    """Write the dash between a parameter and its text as one; smartquotes would take flags too."""
    for node in list(doctree.findall(nodes.Text)):
        if node == " -- ":
            node.parent.replace(node, nodes.Text(" – "))
