"""``gradmimic run --task sft``: instructions, a model and a better sibling → a filtered data set.

    read and tokenise → every sample through the model, and the reference → select → write, report

Nothing is trained. A run that was cut off is taken up again by the same command; one that was done
decides anew, by another rule perhaps, on the scores that it has.
"""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gradmimic.atomic import atomic_write
from gradmimic.canaries import enough
from gradmimic.curate import Quality, Selection, estimate_quality, select
from gradmimic.data.instructions import InstructionSource, open_instructions
from gradmimic.errors import ConfigError, DataError
from gradmimic.extras import import_extra
from gradmimic.log import ScoreLog
from gradmimic.log_reader import LogReader
from gradmimic.run.checkpoints import digest
from gradmimic.run.keys import CONFIG, save_keys
from gradmimic.run.outcome import Outcome, write_metrics
from gradmimic.run.place import Place, find_place
from gradmimic.run.score import Progress
from gradmimic.run.score_folder import finish, open_folder, telling_of_disk
from gradmimic.run.sft.batches import SftUnits
from gradmimic.run.sft.config import SftConfig
from gradmimic.run.sft.encode import Encoder
from gradmimic.run.sft.folder import JOURNAL, claim
from gradmimic.run.sft.losses import REDUCIBLE, REFERENCE, losses_of
from gradmimic.run.sft.models import SftModels, open_models
from gradmimic.run.sft.outcome import measure_sft, notes_on_sft, readable_sft
from gradmimic.run.sft.outputs import look_up, write_filtered
from gradmimic.run.sft.samples import Read, Sequences, read_samples
from gradmimic.run.sft.swapped import swapped
from gradmimic.run.sft.tokens import Pieces, TokenJournal, merge
from gradmimic.units import check_work, finished, score_units


class _Work(NamedTuple):
    """All that is scored, and with what."""

    source: InstructionSource
    models: SftModels
    read: Read
    canaries: Sequences | None
    units: SftUnits


def run_sft(
    config: SftConfig, progress: Progress = lambda _what, _steps: lambda _done: None
) -> Outcome | None:
    """Score instructions toward a reference, and filter them.

    Several processes share the scoring where the environment says so, as torchrun does.

    Args:
        config: the run's configuration; everything is written to ``config.out``.
        progress: told of every row that is read, and of every sample that is scored.

    Returns:
        The numbers, and where everything lies; None in a process that is not the first.

    Raises:
        ConfigError: the folder holds something else, or there is no such model.
        DataError: the data cannot be read, or hold nothing that can be used.
        ReferenceMismatchError: the reference's weights do not fit the model.
        DirectionError: the reference equals the model.
        LossError: a loss is NaN or infinite; the sample is named.
        LogError: the disk does not take what is written; what was scored before is kept.
        MissingExtraError: a library is not installed; raised before anything is read.
        UsageError: another process stopped before it was done.
    """
    if config.report:  # better now than after the scoring
        for library in ("jinja2", "altair", "vl_convert"):
            import_extra(library, "report")
    place, out = find_place(), Path(config.out)
    claim(config, place)
    source = open_instructions(config.data)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", place.local % torch.cuda.device_count())
    models = open_models(config, device)
    encoder = Encoder(models.tokenizer, models.max_length)
    read = read_samples(source, encoder, config.ids, progress("read", None))
    canaries = None
    if config.canaries == "scored":
        rate = config.canary_rate or enough(len(read.sequences))
        canaries = swapped(read.sequences, rate, config.seed, models.max_length)
    padding = models.tokenizer.pad_token_id or 0
    units = SftUnits(read.sequences, canaries, config.batch_size, padding, device)
    work = _Work(source, models, read, canaries, units)
    told = _told(config, work)
    open_folder(out, told, place, overwrite=False)
    began = time.perf_counter()
    with telling_of_disk(out, DataError):
        if place.rank == 0:
            save_keys(config, out / CONFIG)
        scored = _score_share(config, work, told, place, progress)
        if not finish(out, place):
            return None
        seconds = time.perf_counter() - began
        facts = {
            "max_length": models.max_length,
            "chat_template": not encoder.missed,
            "scored": scored,
            "seconds": seconds,
        }
        return _decide(config, work, facts)


def _told(config: SftConfig, work: _Work) -> dict[str, Any]:
    """Return everything that decides the scores."""
    models = work.models
    return {
        "task": "sft",
        "data": work.read.sequences.digest(),
        "checkpoints": [digest(models.model.state_dict())],
        "reference": digest(models.reference.tensors),
        "reference_loss": models.whole is not None,
        "params": config.params,
        "tokens": config.tokens,
        "batch_size": config.batch_size,
        "dtype": config.dtype,
        "canaries": None if work.canaries is None else work.canaries.digest(),
    }


def _score_share(
    config: SftConfig, work: _Work, told: Mapping[str, Any], place: Place, progress: Progress
) -> int:
    """Score the batches that are this process's and not in the log; return how many samples."""
    out, units, models = Path(config.out), work.units, work.models
    given = {"data": config.data, "model": config.model, "reference": config.reference}
    about = {"score": dict(told), "given": given}
    with ScoreLog(out / "log", config=about, seed=config.seed, rank=place.rank) as log:
        check_work(log, {"batches": len(units), "checkpoints": 1})
        done = finished(log, len(units))
        own = range(place.rank, len(units), place.processes)
        wanted = [number for number in own if number not in done]
        if not wanted:
            return 0
        what = "score" if place.processes == 1 else f"score, 1 of {place.processes} shares"
        tell = progress(what, sum(map(units.size, own))) if place.rank == 0 else lambda _done: None
        tell(sum(units.size(number) for number in own if number in done))
        journal = None
        if config.tokens:
            journal = TokenJournal(out / JOURNAL, Pieces(models.tokenizer), place.rank)
        try:
            return score_units(
                {config.model: models.model},
                models.reference,
                units,
                wanted,
                losses_of(models.whole, tokens=config.tokens),
                log,
                ids=lambda batch: batch.ids,
                params=config.params if config.params in ("head", "all") else [config.params],
                align="none",
                temperature="auto",
                engine="forward" if config.tokens or config.params == "head" else "auto",
                on_batch=tell,
                on_scored=None if journal is None else journal.add,
            )
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"a batch does not fit into the device's memory: {error} The longest come first. "
                "Give a smaller --batch-size or --max-length, --dtype bfloat16, or "
                "--no-reference-loss. What was scored before is kept."
            ) from error
        finally:
            if journal is not None:
                journal.close()


def _decide(config: SftConfig, work: _Work, facts: Mapping[str, Any]) -> Outcome:
    """Select, and write everything that is made of the scores."""
    out, read = Path(config.out), work.read
    log = ScoreLog.read(out / "log")
    files = {"selection": out / "selection.parquet"}
    lost = 0  # samples without scores of their tokens
    if config.tokens:
        files["token scores"] = out / "token_scores.parquet"
        if (out / JOURNAL).exists():
            rows = merge(out / JOURNAL, files["token scores"])
            shutil.rmtree(out / JOURNAL)
            lost = len(read.sequences) - rows
    selection = _select(config, work, log, files["selection"])
    files |= write_filtered(work.source, read, config.ids, selection, out)
    files |= {"census": out / "census.json", "metrics": out / "metrics.json"}
    with atomic_write(files["census"]) as file:
        file.write(json.dumps(read.census.to_dict(), indent=2).encode())
    quality = _quality(work, log)
    canaries = 0 if work.canaries is None else len(work.canaries)
    values = measure_sft(config, read, log, selection, quality, canaries, facts)
    write_metrics(files["metrics"], values, config)
    if config.report:
        files["report"] = out / "report.html"
    notes = [*work.models.notes, *notes_on_sft(values), *selection.notes]
    if lost:
        notes.append(
            f"The token scores of {lost:,} samples are gone: {out / JOURNAL} was removed, or "
            "damaged, while the run was cut off. Give --overwrite to score all of them again."
        )
    outcome = Outcome(values, readable_sft(values), notes, files, read.census.rows("file"), "rows")
    if config.report:
        from gradmimic.run.sft.page import write_sft_page

        write_sft_page(
            config,
            outcome,
            selection,
            log,
            lambda wanted: look_up(work.source, read, config.ids, wanted),
            files.get("token scores"),
        )
    return outcome


def _select(config: SftConfig, work: _Work, log: LogReader, path: Path) -> Selection:
    """Decide for every sample."""
    rule = None if config.rule == "auto" else config.rule
    if config.aggregate == "mean":
        return select(log, rule, out=path)
    if work.models.whole is None:
        raise ConfigError(
            "aggregate is stacked, but the reference holds no whole model whose loss could be "
            "combined with the mimic score. Leave aggregate out."
        )
    scorers = ["mimic", REFERENCE, REDUCIBLE]
    return select(log, rule, aggregate="stacked", scorer=scorers, out=path)


def _quality(work: _Work, log: LogReader) -> Quality | None:
    """Estimate the share of useful samples, where there are canaries."""
    return estimate_quality(log) if work.canaries is not None and len(work.canaries) else None
