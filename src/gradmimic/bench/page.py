"""The measured rows and the table of abilities, as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradmimic.bench.abilities import table
from gradmimic.bench.engines import Row

HEADINGS = (
    "engine", "error", "error bf16", "scores: time", "memory", "step: time", "memory",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """Return one row's cells, under ``HEADINGS``.

    Example:
        >>> cells(Row("mlp", "ghost", 2, refused="It cannot."))
        ('ghost', 'It cannot.', '', '', '', '', '')
    """
    if row.refused is not None:
        return (row.engine, row.refused, *[""] * (len(HEADINGS) - 2))
    ratios = (row.scores_time, row.scores_memory, row.step_time, row.step_memory)
    return (
        row.engine,
        f"{row.error:.0e}",
        f"{row.error_bf16:.0e}",
        *(f"{ratio:.2f}" for ratio in ratios),
    )


def by_model(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Group rows by their model."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row.model, []).append(row)
    return grouped


def title(name: str, rows: Sequence[Row]) -> str:
    """Say what a model's ratios are ratios to.

    Example:
        >>> title("mlp", [Row("mlp", "forward", 2, plain_seconds=0.5, plain_bytes=2**20)])
        'mlp, batch 2: a plain step takes 500.0 ms and 1 MiB'
    """
    known = next((row for row in rows if row.refused is None), None)
    text = f"{name}, batch {rows[0].batch}"
    if known is None:
        return text
    seconds, held = known.plain_seconds or 0, known.plain_bytes or 0
    return f"{text}: a plain step takes {1e3 * seconds:.1f} ms and {held / 2**20:.0f} MiB"


def markdown(rows: Iterable[Row], machine: Mapping[str, Any]) -> str:
    """Write both tables, with the machine beneath.

    Args:
        rows: what was measured.
        machine: what it was measured on.

    Returns:
        Markdown that ends with a newline.
    """
    abilities = table()
    parts = [_table(list(abilities[0]), [list(row.values()) for row in abilities])]
    for name, own in by_model(rows).items():
        parts += [f"**{title(name, own)}**", _table(HEADINGS, [cells(row) for row in own])]
    where = machine["accelerator"] or f"{machine['processor']}, {machine['torch_threads']} threads"
    parts.append(
        f"Measured by `gradmimic bench` with torch {machine['versions']['torch']}, {where}."
    )
    return "\n\n".join(parts) + "\n"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def _plain(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
