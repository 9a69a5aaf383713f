"""``gradmimic bench``: what does every engine cost here, and how near does it come?"""

import os
from pathlib import Path
from typing import Annotated

import typer


def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(help="mlp, cnn, vit or decoder; several may be given. Default: all."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples per batch.")] = 32,
    turns: Annotated[int, typer.Option(help="Turns that each timing is the median of.")] = 10,
    json: Annotated[
        Path | None, typer.Option(help="Write every number as JSON.", show_default=False)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the tables as Markdown.", show_default=False)
    ] = None,
) -> None:
    """Measure every engine on this machine: error, time and memory.

    Time and memory are ratios to a plain training step of the same model. All parameters are
    scored. The error is that of the scores, as a part of their norm.
    """
    # its profiler, which counts bytes, reads this when torch is imported, and prints a lot else
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    from gradmimic.bench.engines import measure
    from gradmimic.bench.machine import machine
    from gradmimic.bench.models import CASES
    from gradmimic.bench.page import markdown as page
    from gradmimic.cli.bench_tables import print_abilities, print_rows, write, write_json

    rows = []
    told = lambda name: typer.echo(f"measuring {name} …", err=True)
    for row in measure(model or CASES, b=batch_size, turns=turns, told=told):
        rows.append(row)
        if json is not None:  # after every model: who stops a long run keeps what there is
            write_json(json, rows, machine())
    print_abilities()
    print_rows(rows)
    if markdown is not None:
        write(markdown, page(rows, machine()))
