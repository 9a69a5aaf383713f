"""The whole run on pairs, in the order it happens.

    read → the reference → train plain → train re-weighted, logging every score
         → select → train on the selected pairs → measure → report

Everything it leaves lies in one folder. A run that was cut off is taken up again by the same
command, where the last round of a training ended.
"""

from dataclasses import replace
from pathlib import Path

import torch

from gradmimic.curate import estimate_quality, select
from gradmimic.errors import ConfigError
from gradmimic.extras import import_extra
from gradmimic.log import ScoreLog
from gradmimic.run.clip.beside import SCORER
from gradmimic.run.clip.config import ClipConfig
from gradmimic.run.clip.outcome import (
    measure_pairs,
    notes_on_pairs,
    readable_pairs,
)
from gradmimic.run.clip.page import write_pairs_page
from gradmimic.run.clip.prepare import open_initial
from gradmimic.run.clip.read import Progress, load_pairs
from gradmimic.run.clip.sets import open_tests
from gradmimic.run.clip.state import FOLDER
from gradmimic.run.clip.trainings import Trainings
from gradmimic.run.config import load_task
from gradmimic.run.keys import CONFIG, begin_folder
from gradmimic.run.outcome import Outcome, write_metrics

OUTPUTS = (
    CONFIG, FOLDER, "reference.pt", "plain.pt", "reweighted.pt", "selected.pt", "log",
    "selection.parquet", "metrics.json", "report.html",
)  # fmt: skip


def run_clip(
    config: ClipConfig, progress: Progress = lambda _what, _steps: lambda _done=1: None
) -> Outcome:
    """Train a reference, train plain and re-weighted, select, measure and report.

    Args:
        config: the run's configuration; everything is written to ``config.out``. A run that was
            cut off there with the same configuration is taken up again.
        progress: told of every training and step.

    Returns:
        The numbers, and where everything lies.

    Raises:
        ConfigError: the folder holds another run, or there is no such model.
        DataError: the input cannot be read, or leaves too few pairs.
        ReferenceMismatchError: the reference does not fit the model.
        MissingExtraError: a library is not installed; raised before any training.
    """
    import_extra("PIL.Image", "images")
    if config.report:  # better now than after the training
        for library in ("jinja2", "altair", "vl_convert"):
            import_extra(library, "report")
    out = Path(config.out)
    earlier = _earlier(config, out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pair = open_initial(config, device)
    tests = open_tests(config, pair)
    trainings = Trainings(config, pair, tests, out, progress)
    read = trainings.read()
    inputs = load_pairs(config, pair, progress)
    begin_folder(config, out, earlier)
    trainings.states.check_inputs({"pairs": inputs.fingerprint, "samples": len(inputs.train)})

    better = trainings.better(inputs, read)
    trainings.has_clip_scores(inputs.train, better)
    trainings.plain(inputs.train)
    trainings.reweighted(inputs.train, better)
    log = ScoreLog.read(out / "log")
    files = {"selection": out / "selection.parquet", "metrics": out / "metrics.json"}
    rule = None if config.rule == "auto" else config.rule
    scorers = ["mimic", SCORER] if config.aggregate == "stacked" else "mimic"
    selection = select(
        log, rule, aggregate=config.aggregate, scorer=scorers, out=files["selection"]
    )
    if config.retrain:
        trainings.selected(inputs.train, selection)
    quality = estimate_quality(log) if config.canaries != "off" else None
    values = measure_pairs(inputs, trainings, log, selection, quality)
    if config.report:
        files["report"] = out / "report.html"
    outcome = Outcome(
        values, readable_pairs(values), notes_on_pairs(values), files, inputs.census.rows()
    )
    if config.report:
        write_pairs_page(config, inputs, outcome, selection, log, better.whole)
    write_metrics(files["metrics"], values, config)
    trainings.states.remove()
    return outcome


def _earlier(config: ClipConfig, out: Path) -> list[Path]:
    """List what is to be removed from the output folder; none of it where a run goes on."""
    earlier = [out / name for name in OUTPUTS if (out / name).exists()]
    if not earlier:
        return []
    if not config.overwrite:
        if (out / FOLDER).is_dir() and _same(config, out / CONFIG):
            return []
        raise ConfigError(
            f"{out} already holds a run ({earlier[0].name}). Give another --out, or --overwrite."
            + (
                " It was cut off, and goes on with the configuration that it began with."
                if (out / FOLDER).is_dir()
                else ""
            )
        )
    for source in (config.reference, config.start):
        if source is not None and any(p.resolve() == Path(source).resolve() for p in earlier):
            raise ConfigError(
                f"{source} is part of the run that would be replaced. Give another --out, or a "
                "copy of it."
            )
    return earlier


def _same(config: ClipConfig, file: Path) -> bool:
    """Tell whether a run began with this configuration."""
    try:
        before = load_task(file, {})
    except ConfigError:
        return False
    return isinstance(before, ClipConfig) and replace(before, overwrite=False) == replace(
        config, overwrite=False
    )
