"""What a run looks like in a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from gradmimic.run.outcome import Outcome


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Show steps a second."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} steps/s" if speed else "", style="dim")


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """Open progress bars with rate and time left.

    Yields:
        ``progress(what, steps)``, which adds a bar and returns what to call after each step.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def progress(what: str, steps: int) -> Callable[[], None]:
            task = bars.add_task(what, total=steps)
            return lambda: bars.advance(task)

        yield progress


def print_outcome(outcome: Outcome) -> None:
    """Print what was found, and where it lies."""
    console = Console()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for metric in outcome.metrics:
        table.add_row(Text(metric.name), Text(metric.printed), Text(metric.meaning, "dim"))
    console.print(table)
    for note in outcome.notes:
        console.print(Text("Note: ", style="bold yellow") + Text(note), soft_wrap=True)
    for what, path in outcome.files.items():
        console.print(Text(f"{what}: {path}"), soft_wrap=True)
