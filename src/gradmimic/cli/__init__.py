"""The command line: thin, with imports inside the commands, so that help costs nothing."""

import sys

import typer

from gradmimic.cli.bench import bench
from gradmimic.cli.cache import cache
from gradmimic.cli.check import check
from gradmimic.cli.quality import quality
from gradmimic.cli.reproduce import reproduce
from gradmimic.cli.run import TaskHelp, run
from gradmimic.cli.score import score
from gradmimic.cli.select import select
from gradmimic.errors import GradMimicError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    help="Does learning from this sample move my weights toward a better model's weights?",
)
app.command(cls=TaskHelp)(run)
for command in (check, score, select, quality, cache, bench):
    app.command()(command)
app.add_typer(reproduce, name="reproduce")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("gradmimic"))
        raise typer.Exit


@app.callback()
def gradmimic(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Find mislabelled samples and train better models on imperfect data."""


def main() -> None:
    """Run the command line; errors we raise on purpose end it with their message and status 1."""
    try:
        app()
    except GradMimicError as error:
        from rich.console import Console
        from rich.text import Text

        console = Console(stderr=True, soft_wrap=True)
        console.print(Text("Error: ", style="bold red") + Text(str(error), style="default"))
        sys.exit(1)
