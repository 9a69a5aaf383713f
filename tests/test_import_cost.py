"""Imports are counted, never timed: each check runs in a process of its own."""

import json
import subprocess
import sys

import pytest

import gradmimic

HELP = """
import sys
from gradmimic.cli import main
sys.argv = ["gradmimic", *{arguments}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def modules_after(code):
    """Run code in a new process; return the names of all modules it imported, in order."""
    code += "\nimport json, sys; print('\\n' + json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout.splitlines()[-1])


def packages(modules):
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize(
    ("arguments", "more"),
    [(["--help"], {"pydantic"}), (["run", "--help"], set())],  # some typers need it for flags
)
def test_help_imports_nothing_heavy(arguments, more):
    imported = packages(modules_after(HELP.format(arguments=arguments)))
    heavy = {"torch", "numpy", "pyarrow", "yaml", "altair", "vl_convert", "jinja2", "PIL"} | more
    assert heavy & imported == set()
    assert "typer" in imported


def test_the_package_adds_little_to_torch():
    modules = modules_after("import torch, gradmimic; gradmimic.GradMimic; gradmimic.mimic_scores")
    without = modules_after("import torch")
    added = [name for name in modules if name not in without]
    extras = {"altair", "jinja2", "sklearn", "PIL", "pandas", "duckdb", "typer", "rich", "yaml"}
    assert extras & packages(added) == set()
    # 78 when this was written: 53 of gradmimic, 21 that pyarrow brings, 2 of NumPy's typing.
    assert len(added) < 90, added


def test_importing_the_package_alone_imports_no_other():
    assert {"torch", "numpy", "pyarrow"} & packages(modules_after("import gradmimic")) == set()


def test_every_public_name_resolves():
    for name in gradmimic.__all__:
        assert getattr(gradmimic, name).__name__ == name
        assert name in dir(gradmimic)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'gradmimic' has no attribute 'GradMimick'"):
        _ = gradmimic.GradMimick
