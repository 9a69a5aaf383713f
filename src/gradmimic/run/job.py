"""The whole job, in the order it happens.

    read → the reference → train plain → train re-weighted, logging every score
         → select → measure → report

Everything it leaves lies in one folder.
"""

from pathlib import Path

from gradmimic.curate import estimate_quality, select
from gradmimic.errors import ConfigError
from gradmimic.extras import import_extra
from gradmimic.log import ScoreLog
from gradmimic.run.compared import compare_scorers
from gradmimic.run.config import RunConfig
from gradmimic.run.inputs import load_inputs
from gradmimic.run.keys import CONFIG, begin_folder
from gradmimic.run.outcome import (
    Outcome,
    measure,
    notes_on,
    readable,
    scores_by_epoch,
    write_labels,
    write_metrics,
)
from gradmimic.run.page import write_page
from gradmimic.run.prepare import Progress
from gradmimic.run.trainings import train_all

OUTPUTS = (
    CONFIG, "reference.pt", "plain.pt", "reweighted.pt", "log", "labels.parquet",
    "selection.parquet", "metrics.json", "report.html",
)  # fmt: skip


def run_job(config: RunConfig, progress: Progress = lambda _what, _steps: lambda: None) -> Outcome:
    """Train a reference, train plain and re-weighted, select, measure and report.

    Args:
        config: the run's configuration; everything is written to ``config.out``.
        progress: told of every training and step.

    Returns:
        The numbers, and where everything lies.

    Raises:
        ConfigError: the folder holds another run.
        DataError: the input cannot be read.
        ReferenceMismatchError: the reference does not fit the model.
        MissingExtraError: the report's libraries are not installed; raised before any training.
    """
    if config.report:  # better now than after the training
        for library in ("jinja2", "altair", "vl_convert"):
            import_extra(library, "report")
    earlier = _earlier(config)
    inputs = load_inputs(config)
    out = Path(config.out)
    begin_folder(config, out, earlier)
    trained = train_all(config, inputs, out, progress)

    log = ScoreLog.read(out / "log")
    files = {"selection": out / "selection.parquet", "metrics": out / "metrics.json"}
    rule = None if config.rule == "auto" else config.rule
    selection = select(log, rule, aggregate=config.aggregate, out=files["selection"])
    labels = write_labels(out / "labels.parquet", inputs.train)
    quality = estimate_quality(log, labels=labels) if config.canaries != "off" else None
    scores = scores_by_epoch(log, inputs.train.ids)
    values = measure(inputs, trained, scores, selection, quality)
    if config.others:
        values["scorers"] = compare_scorers(log, ("mimic", *config.others), inputs)
    write_metrics(files["metrics"], values, config)
    if config.report:
        files["report"] = out / "report.html"
    outcome = Outcome(values, readable(values), notes_on(values), files)
    if config.report:
        write_page(config, inputs, trained, scores, selection, log, outcome)
    return outcome


def _earlier(config: RunConfig) -> list[Path]:
    """List what another run left in the output folder; refuse to replace it unless told to."""
    out = Path(config.out)
    earlier = [out / name for name in OUTPUTS if (out / name).exists()]
    if earlier and not config.overwrite:
        raise ConfigError(
            f"{out} already holds a run ({earlier[0].name}). Give another --out, or --overwrite."
        )
    if config.reference and any(
        path.resolve() == Path(config.reference).resolve() for path in earlier
    ):
        raise ConfigError(
            f"The reference {config.reference} is part of the run that would be replaced. Give "
            "another --out, or a copy of it."
        )
    return earlier
