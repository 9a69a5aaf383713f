import os
import re
import subprocess
import sys
from dataclasses import fields

import pytest
import typer
from blobs import blob_keys, read_outputs, write_blobs
from typer.testing import CliRunner

from gradmimic.cli import app, main
from gradmimic.run.config import TASKS, load_config

COMMAND = [sys.executable, "-c", "from gradmimic.cli import main; main()"]


@pytest.fixture
def folder(tmp_path):
    write_blobs(tmp_path)
    return tmp_path


def flags_of(keys):
    """Write keys as flags."""
    for key, value in keys.items():
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            yield flag if value else flag.replace("--", "--no-", 1)
        else:
            yield from (flag, str(value))


def call(monkeypatch, *arguments):
    """Call main() as the installed command does; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["gradmimic", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code or 0


def test_every_key_is_a_flag_and_every_flag_a_key():
    command = typer.main.get_command(app).commands["run"]
    options = {
        parameter.name: parameter.opts
        for parameter in command.params
        if parameter.name not in {"config", "help"}
    }
    keys = {key.name for kind in TASKS.values() for key in fields(kind)}
    assert options == {name: ["--" + name.replace("_", "-")] for name in keys}
    assert all(parameter.default is None for parameter in command.params)


def test_help_names_every_flag_and_its_default(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["run", "--help"], terminal_width=200)
    assert result.exit_code == 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stdout).split())
    for key in (key for kind in TASKS.values() for key in fields(kind)):
        assert f"--{key.name.replace('_', '-')} " in text
        assert key.metadata["help"] in text
    assert "[default: 0.001]" in text
    assert "--no-report" in text


def test_help_on_a_task_names_its_keys_alone(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["run", "--task", "sft", "--help"], terminal_width=200)
    assert result.exit_code == 0
    named = set(re.findall(r"--([a-z][a-z-]*)", result.stdout.partition("Arguments")[2]))
    keys = {key.name.replace("_", "-") for key in fields(TASKS["sft"])}
    assert {name for name in named if not name.startswith("no-")} == keys | {"help"}
    assert "(task" not in result.stdout


def test_help_and_version(monkeypatch, capsys):
    assert call(monkeypatch, "--help") == 0
    assert "run" in capsys.readouterr().out
    monkeypatch.setattr("importlib.metadata.version", {"gradmimic": "1.2.3"}.get)
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == "1.2.3\n"


def test_a_run_prints_what_it_found_and_where(folder, monkeypatch, capsys):
    keys = blob_keys(folder, report=True)
    assert call(monkeypatch, "run", *flags_of(keys)) == 0
    printed = capsys.readouterr()
    metrics, _ = read_outputs(keys["out"])
    text = " ".join(printed.out.split())
    assert f"AUROC of the mean score {metrics['auroc']:.4g}" in text
    assert f"samples removed {metrics['removed']}" in text
    for name in ("selection.parquet", "metrics.json", "report.html"):
        assert f"{folder}/run/{name}\n" in printed.out
    for name in ("reference", "plain", "re-weighted"):
        assert name in printed.err


def test_flags_win_over_the_file(folder, monkeypatch):
    keys = blob_keys(folder, epochs=1, lr=0.5)
    (folder / "run.yaml").write_text("".join(f"{key}: '{value}'\n" for key, value in keys.items()))
    assert call(monkeypatch, "run", folder / "run.yaml", "--lr", "0.02", "--rule", "two_means") == 0
    saved = load_config(folder / "run" / "config.yaml", {})
    assert (saved.lr, saved.rule, saved.epochs, saved.report) == (0.02, "two_means", 1, False)
    # The saved file is a run's whole input.
    assert call(monkeypatch, "run", folder / "run" / "config.yaml", "--overwrite") == 0
    assert load_config(folder / "run" / "config.yaml", {}).lr == 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Error: There is no data: give --data PATH, or `data:` in the file."),
        (["run", "none.yaml"], "Error: Cannot read the configuration none.yaml"),
        (["run", "--data", "[red]x", "--trusted", "0:1"], "Error: no file or folder [red]x (from"),
    ],
)
def test_an_error_is_one_message_and_status_1(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("Error") == 1
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []


def test_what_a_shell_sees_of_an_error(tmp_path):
    done = subprocess.run(
        [*COMMAND, "run", "--data", "x.npy", "--trusted", "0:1", "--epochs", "0"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: epochs must be at least 1, got 0.\n"


@pytest.mark.parametrize(
    "arguments", [["run", "--epoch", "3"], ["run", "--epochs", "x"], ["run", "--noise", "salt"]]
)
def test_flags_that_cannot_be(monkeypatch, capsys, arguments):
    assert call(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert arguments[1] in printed.err
    assert "Traceback" not in printed.err
