"""``gradmimic run``: every key of the configuration is a flag."""

from collections.abc import Mapping
from dataclasses import Field, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand
from typer.main import get_command

from gradmimic.run.clip.config import ClipConfig
from gradmimic.run.config import TASKS, RunConfig, load_task


def run(config: Path | None, **flags: Any) -> None:
    """Train plain and re-weighted, find the bad samples, and report.

    With the task **labels**, the default: a classifier; needs data with labels, and a reference:
    samples known to be clean (--trusted), a file of better weights or of outputs (--reference), or
    nothing but the labels (--reference self). With the task **clip**: a contrastive model; needs
    pairs of pictures and captions, and --trusted or --reference. With the task **sft** nothing is
    trained: instructions are scored and filtered; needs a language model (--model) and a better
    sibling of it (--reference). Writes the score log, selection.parquet, metrics.json, report.html,
    the resolved config.yaml, and the weights or the filtered data to --out.

    For the keys of one task alone: gradmimic run --task sft --help.
    """
    resolved = load_task(config, flags)

    from gradmimic.cli.show import print_outcome, progress_bars

    with progress_bars() as progress:
        if isinstance(resolved, RunConfig):
            from gradmimic.run.job import run_job

            outcome = run_job(resolved, progress)
        elif isinstance(resolved, ClipConfig):
            from gradmimic.run.clip.job import run_clip

            outcome = run_clip(resolved, progress)
        else:
            from gradmimic.run.sft.job import run_sft

            filtered = run_sft(resolved, progress)
            if filtered is None:  # another process has the last word
                return
            outcome = filtered
    print_outcome(outcome)


class TaskHelp(TyperCommand):
    """Shows the keys of one task alone where ``--task`` stands before ``--help``."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        task = ctx.params.get("task")
        if task not in TASKS:
            return super().format_help(ctx, formatter)

        def of_task() -> None: ...

        of_task.__doc__ = run.__doc__
        _declare(of_task, {task: TASKS[task]})
        app = typer.Typer(rich_markup_mode=self.rich_markup_mode, add_completion=False)
        app.command()(of_task)
        return get_command(app).format_help(ctx, formatter)


def signature(tasks: Mapping[str, type]) -> Signature:
    """Make a flag of every key; None stands for "not given", so that a file's value can win.

    Args:
        tasks: the configurations by task. A key of several of them is one flag.
    """
    file = typer.Argument(help="A YAML or TOML file of the keys below.", show_default=False)
    parameters = [
        Parameter(
            "config",
            Parameter.POSITIONAL_OR_KEYWORD,
            default=None,
            annotation=Annotated[Path | None, file],
        )
    ]
    owners: dict[str, list[str]] = {}
    for task, kind in tasks.items():
        for key in fields(kind):
            owners.setdefault(key.name, []).append(task)
    for name in sorted(owners, key=lambda name: (name != "task", len(owners[name]) == 1)):
        keys = {task: _field(tasks[task], name) for task in owners[name]}
        types = [_flag_type(get_type_hints(tasks[task])[name]) for task in keys]
        panel = next(iter(keys.values())).metadata["group"]
        if len(keys) < len(tasks):
            panel += f" (task {', '.join(keys)})"
        option = typer.Option(
            help=_help(keys),
            rich_help_panel=panel,
            show_default=False,
            is_eager=name == "task",  # so that help knows of it
        )
        parameters.append(
            Parameter(
                name,
                Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[_merged(types) | None, option],
            )
        )
    return Signature(parameters)


def _field(kind: Any, name: str) -> "Field[Any]":
    return next(key for key in fields(kind) if key.name == name)


def _help(keys: "Mapping[str, Field[Any]]") -> str:
    """Explain a key, and once more for a task in which it is another one."""
    said: list[str] = []
    for task, key in keys.items():
        text = key.metadata["help"]
        if key.name == "task":
            return f"{text} [default: labels]"
        if key.default not in (None, ""):
            text += f" [default: {_text(key.default)}]"
        if text not in said:
            said.append(text if not said else f"{task}: {text}")
    return " ".join(dict.fromkeys(said))


def _flag_type(hint: Any) -> Any:
    """Return what a flag takes: the type itself, text where there are several."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) is Literal or not kinds:
        return hint
    return kinds[0] if len(kinds) == 1 else str


def _merged(types: list[Any]) -> Any:
    """Return what a flag of several tasks takes; the task's own configuration checks it again."""
    if all(get_origin(kind) is Literal for kind in types):
        return Literal[tuple(dict.fromkeys(value for kind in types for value in get_args(kind)))]
    return types[0] if len(set(types)) == 1 else str


def _text(default: object) -> str:
    return ("yes" if default else "no") if isinstance(default, bool) else str(default)


def _declare(function: Any, tasks: Mapping[str, type]) -> None:
    """Give a function the flags of some tasks."""
    function.__signature__ = own = signature(tasks)
    function.__annotations__ = {name: p.annotation for name, p in own.parameters.items()}


_declare(run, TASKS)
