"""``gradmimic run``: every key of the configuration is a flag."""

from dataclasses import fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from gradmimic.run.config import RunConfig, load_config


def run(config: Path | None, **flags: Any) -> None:
    """Train plain and re-weighted, find the mislabelled samples, and report.

    Needs data with labels, and a reference: samples known to be clean (--trusted), a file of better
    weights or of outputs (--reference), or nothing but the labels (--reference self). Writes the
    score log, selection.parquet, metrics.json, report.html, the weights and the resolved
    config.yaml to --out.
    """
    resolved = load_config(config, flags)

    from gradmimic.cli.show import print_outcome, progress_bars
    from gradmimic.run.job import run_job

    with progress_bars() as progress:
        outcome = run_job(resolved, progress)
    print_outcome(outcome)


def _signature() -> Signature:
    """Make a flag of every key; None stands for "not given", so that a file's value can win."""
    hints = get_type_hints(RunConfig)
    file = typer.Argument(help="A YAML or TOML file of the keys below.", show_default=False)
    parameters = [
        Parameter(
            "config",
            Parameter.POSITIONAL_OR_KEYWORD,
            default=None,
            annotation=Annotated[Path | None, file],
        )
    ]
    for key in fields(RunConfig):
        default = "" if key.default in (None, "") else f" [default: {_text(key.default)}]"
        option = typer.Option(
            help=key.metadata["help"] + default,
            rich_help_panel=key.metadata["group"],
            show_default=False,
        )
        parameters.append(
            Parameter(
                key.name,
                Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[_flag_type(hints[key.name]) | None, option],
            )
        )
    return Signature(parameters)


def _flag_type(hint: Any) -> Any:
    """Return what a flag takes: the type itself, text where there are several."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if str(hint).startswith("typing.Literal") or not kinds:
        return hint
    return kinds[0] if len(kinds) == 1 else str


def _text(default: object) -> str:
    return ("yes" if default else "no") if isinstance(default, bool) else str(default)


run.__signature__ = _signature()  # type: ignore[attr-defined]
run.__annotations__ = {name: p.annotation for name, p in _signature().parameters.items()}
