"""What runs and estimates look like in a terminal."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

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
from rich.table import Column, Table
from rich.text import Text

from gradmimic.curate import Quality, Selection
from gradmimic.curate.quality import better
from gradmimic.data.pairs.census import Row
from gradmimic.run.outcome import Outcome


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """Show steps a second."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self._unit}/s" if speed else "", style="dim")


@contextmanager
def progress_bars(
    unit: str = "steps",
) -> Iterator[Callable[[str, int | None], Callable[..., None]]]:
    """Open progress bars with rate and time left.

    Args:
        unit: what is counted.

    Yields:
        ``progress(what, steps)``, which adds a bar and returns what to call after each step, or
        with a number of them; None stands for steps that nobody has counted.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def progress(what: str, steps: int | None) -> Callable[..., None]:
            task = bars.add_task(what, total=steps or None)
            return lambda done=1: bars.advance(task, done)

        yield progress


def print_outcome(outcome: Outcome) -> None:
    """Print what was found, and where it lies."""
    console = Console()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for metric in outcome.metrics:
        table.add_row(Text(metric.name), Text(metric.printed), Text(metric.meaning, "dim"))
    console.print(table)
    print_census(outcome.census, outcome.counted)
    for note in outcome.notes:
        console.print(Text("Note: ", style="bold yellow") + Text(note), soft_wrap=True)
    for what, path in outcome.files.items():
        console.print(Text(f"{what}: {path}"), soft_wrap=True)


def print_census(rows: Sequence[Row], counted: str = "pairs") -> None:
    """Print what became of all that was read; the counts add up to the last one.

    Args:
        rows: of the table; none where the task keeps no count.
        counted: what they count.
    """
    if not rows:
        return
    count, example = Column(counted, justify="right"), Column("the first", style="dim")
    table = Table(count, "what became of them", example, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        number = "unknown" if row.count is None else f"{row.count:,}"
        table.add_row(number, Text(row.what), Text(row.example))
    Console().print(table)


def print_qualities(found: Mapping[str, Quality]) -> None:
    """Print how good data sets are, the best first, and which differences are sure."""
    console = Console()
    ranked = sorted(found, key=lambda name: -found[name].quality.value)
    name_column = Column("data set", overflow="fold")
    table = Table(name_column, "quality", "interval", "samples", "visits", "canary AUROC")
    for name in ranked:
        own = found[name]
        aurocs = (f"{kind.partition('/')[0]} {area.value:.3f}" for kind, area in own.auroc.items())
        table.add_row(
            Text(name),
            f"{own.quality.value:.3f}",
            f"{own.quality.low:.3f} – {own.quality.high:.3f}",
            f"{own.samples:,}",
            f"{own.visits:,}",
            ", ".join(aurocs) or "no canaries",
        )
    console.print(table)
    for name in ranked:
        if not found[name].calibrated:
            text = f"{name} holds no canaries: its quality is a mixture's guess, without interval."
            console.print(Text(text), soft_wrap=True)
    for one, other in pairwise(ranked):
        sure = better(found[one], found[other])
        text = "is better than" if sure else "cannot be told from"
        console.print(Text(f"{one} {text} {other}."), soft_wrap=True)
    for name in ranked:
        if found[name].by_class:
            _print_classes(console, name, found[name])


def _print_classes(console: Console, name: str, quality: Quality) -> None:
    """Print the quality of each class, the worst first."""
    table = Table("class", "quality", "interval", title=Text(name))
    for label, own in sorted(quality.by_class.items(), key=lambda item: item[1].value):
        interval = f"{own.low:.3f} – {own.high:.3f}"
        table.add_row(Text(str(label)), f"{own.value:.3f}", interval)
    console.print(table)


def print_selection(selection: Selection, files: Mapping[str, Path]) -> None:
    """Print how much is kept and why, and where everything lies."""
    console = Console()
    console.print(Text(selection.summary()), soft_wrap=True)
    table = Table("samples", "reason", box=None, padding=(0, 2, 0, 0))
    for reason, count in selection.reasons().items():
        table.add_row(f"{count:,}", Text(reason))
    console.print(table)
    for note in selection.notes:
        console.print(Text("Note: ", style="bold yellow") + Text(note), soft_wrap=True)
    for what, path in files.items():
        console.print(Text(f"{what}: {path}"), soft_wrap=True)


def log_folder(path: Path) -> Path:
    """Return a log's folder; in a run's folder it is ``log``."""
    return path / "log" if (path / "log").is_dir() else path
