"""``gradmimic reproduce``: the paper's tables, and what else we claim, a command each."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from gradmimic.reproduce.cases import Settings
    from gradmimic.reproduce.report import Report

SIX = ["dtd", "flowers102", "stl10", "pets", "cifar10", "cifar100"]
VIT = "google/vit-base-patch16-224"  # ViT-B/16 of ImageNet, as published

reproduce = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Rerun the paper's tables. What was computed is kept in --out, and goes on from there.",
)

Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="dtd, flowers102, stl10, pets, cifar10, cifar100, or a name of your own with --data; "
        "several may be given. Default: all six.",
        show_default=False,
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FOLDER",
        help="A local copy of a set: saved by datasets, or Parquets as on the hub, or features. "
        "Default: from the hub.",
        show_default=False,
    ),
]
Backbone = Annotated[
    str,
    typer.Option(
        help="An image classifier by hub id or folder; or features: features_train.npy and "
        "features_test.npy, or features.npy, beside the local copy."
    ),
]
_TUNING = "probe: the head alone is trained; full: all of the backbone."
Tuning = Annotated[
    Literal["probe", "full"],
    typer.Option(help=_TUNING),
]
Noise = Annotated[
    list[str],
    typer.Option(
        help="The share of labels that are wrong; or pair:RATE, confusable:RATE, column:NAME. "
        "Several may be given."
    ),
]
Seeds = Annotated[int, typer.Option(help="How many seeds, from 0.")]
Epochs = Annotated[
    int | None,
    typer.Option(
        help="Passes over the data. Default: 5; 10 on dtd and flowers102.", show_default=False
    ),
]
BatchSize = Annotated[int, typer.Option(help="Samples per step.")]
Lr = Annotated[float, typer.Option(help="AdamW's learning rate.")]
WeightDecay = Annotated[float, typer.Option(help="AdamW's weight decay.")]
Temperature = Annotated[float, typer.Option(help="τ of mimic's weights softmax(m/τ).")]
Out = Annotated[Path, typer.Option(help="The folder for everything.")]


@reproduce.command()
def table1(
    sets: Sets = None,
    data: Data = None,
    backbone: Backbone = VIT,
    tuning: Annotated[
        list[str] | None,
        typer.Option(help=f"{_TUNING} Default: both, where there are weights.", show_default=False),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="plain, grand, agra, grad_match, rho, influence, mimic, or ours, mimic_auto "
            "and mimic_outputs; several may be given. Default: those of the paper.",
            show_default=False,
        ),
    ] = None,
    noise: Noise = ["0.4", "0.5", "0.6"],  # noqa: B006  typer copies it
    seeds: Seeds = 3,
    epochs: Epochs = None,
    batch_size: BatchSize = 32,
    lr: Lr = 1e-4,
    weight_decay: WeightDecay = 1e-5,
    temperature: Temperature = 1.0,
    out: Out = Path("reproduce"),
) -> None:
    """Accuracy under label noise: plain, re-weighted by mimic scores, and by five rivals'.

    The default is the paper's table: six sets, three levels of noise, ViT-B/16, linear probe and
    full fine-tuning. The reference is trained by the same recipe on the clean labels, from another
    seed. influence may use five clean samples of each class.
    """
    from gradmimic.cli.show import progress_bars
    from gradmimic.reproduce.table1 import Table1, report
    from gradmimic.reproduce.training import PUBLISHED

    settings = settings_of(
        sets or SIX, data, backbone, "probe", noise, seeds, epochs, batch_size, lr, weight_decay,
        temperature,
    )  # fmt: skip
    tunings = tuning or (["probe"] if backbone == "features" else ["probe", "full"])
    with progress_bars() as progress:
        rows = list(Table1(settings, tunings, method or PUBLISHED, out, progress).rows())
    finish(report(rows), out, "table1")


def _add(name: str, levels: list[str], about: str) -> None:
    """Add a command that computes the cells of one module, all with the same options."""

    @reproduce.command(name, help=about)
    def command(
        sets: Sets = None,
        data: Data = None,
        backbone: Backbone = VIT,
        tuning: Tuning = "probe",
        noise: Noise = levels,
        seeds: Seeds = 3,
        epochs: Epochs = None,
        batch_size: BatchSize = 32,
        lr: Lr = 1e-4,
        weight_decay: WeightDecay = 1e-5,
        temperature: Temperature = 1.0,
        out: Out = Path("reproduce"),
    ) -> None:
        from functools import partial
        from importlib import import_module

        from gradmimic.cli.show import progress_bars
        from gradmimic.reproduce.cases import Cases
        from gradmimic.reproduce.cells import run_cells

        module = import_module(f"gradmimic.reproduce.{name}")
        settings = settings_of(
            sets or SIX, data, backbone, tuning, noise, seeds, epochs, batch_size, lr,
            weight_decay, temperature,
        )  # fmt: skip
        with progress_bars("cells") as progress:
            cases = Cases(settings, out / "features", progress)
            cells = module.cells(cases)
            compute = partial(module.compute, cases)
            rows = list(run_cells(cells, compute, out, progress(name, len(cells))))
        finish(module.report(rows), out, name)


_add(
    "detection",
    ["0.2", "0.4", "0.6"],
    "Which wrong labels each rule and each scorer finds: AUROC, average precision, F1. All scorers "
    "are logged in one pass; does the one that canaries choose come near the best?",
)
_add(
    "quality",
    [f"{level / 10:g}" for level in range(8)],
    "Estimates of the share of right labels beside the truth, by canaries and by the 1/b vote.",
)
_add(
    "efficiency",
    ["0.4"],
    "Accuracy of models trained on the top 80, 70, 60 and 50 % by every scorer, and on any.",
)
_add(
    "curves",
    ["0.4"],
    "Steps that re-weighted training needs to come to where plain training ends, by the loss on "
    "all labels, on the right ones, on the test set, and by accuracy.",
)
_add(
    "ablations",
    ["0.4"],
    "What matters: the temperature, which parameters are scored and follow, and how good the "
    "reference is, down to one that is none.",
)


def settings_of(
    sets: Sequence[str],
    data: Sequence[str] | None,
    backbone: str,
    tuning: Literal["probe", "full"],
    noise: Sequence[str],
    seeds: int,
    epochs: int | None,
    batch_size: int,
    lr: float,
    weight_decay: float,
    temperature: float,
) -> "Settings":
    """Read what all these commands are given alike.

    Raises:
        ConfigError: ``--data`` is not NAME=FOLDER.
    """
    from gradmimic.errors import ConfigError
    from gradmimic.reproduce.cases import Settings

    folders = {}
    for text in data or ():
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise ConfigError(f"Expected --data NAME=FOLDER, such as dtd=data/dtd; got {text!r}.")
        folders[name] = folder
    return Settings(
        sets, folders, backbone, tuning, noise, seeds, epochs, batch_size, lr, weight_decay,
        temperature,
    )  # fmt: skip


def finish(report: "Report", out: Path, name: str) -> None:
    """Write tables, pictures and sentences, and print them."""
    from rich.console import Console
    from rich.text import Text

    from gradmimic.bench.machine import machine
    from gradmimic.reproduce.plots import save
    from gradmimic.reproduce.tables import write_tables

    command = shlex.join(["gradmimic", *sys.argv[1:]])
    files = write_tables(
        out, name, report.tables, command=command, machine=machine(), told=report.told
    )
    files |= {
        f"chart of {what}": save(own, out / f"{name}-{what}.svg")
        for what, own in report.charts.items()
    }
    console = Console()
    for table in report.tables:
        console.print(table.shown())
    for text in report.told:
        console.print(Text(text), soft_wrap=True)
    for what, path in files.items():
        console.print(Text(f"{what}: {path}"), soft_wrap=True)
