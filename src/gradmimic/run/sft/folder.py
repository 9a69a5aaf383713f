"""The folder of ``--task sft``: what may be continued, what is refused, what is replaced.

log/, tokens/           what was scored; log/run.json says of what data, weights and settings
everything else         made of these in the end, and anew by the same command
"""

import shutil
from pathlib import Path

from gradmimic.errors import ConfigError, LogError
from gradmimic.log_reader import RUN_FILE, LogReader
from gradmimic.run.keys import CONFIG
from gradmimic.run.place import Place
from gradmimic.run.sft.config import SftConfig

JOURNAL = "tokens"
OUTPUTS = (
    "log", JOURNAL, CONFIG, "selection.parquet", "token_scores.parquet", "kept.jsonl", "kept.json",
    "kept.parquet", "kept", "removed.jsonl", "census.json", "metrics.json", "report.html",
)  # fmt: skip


def claim(config: SftConfig, place: Place) -> None:
    """See that the folder is free, or holds a run of this task; remove it where that is asked for.

    Raises:
        ConfigError: it holds something else, or part of what is to be read.
    """
    out = Path(config.out)
    there = [out / name for name in OUTPUTS if (out / name).exists()]
    for given in (config.data, config.model, config.reference, config.tokenizer):
        inside = given and any(
            path == Path(given).resolve() or path in Path(given).resolve().parents
            for path in (own.resolve() for own in there)
        )
        if inside:
            raise ConfigError(
                f"{given} is part of the run that would be replaced. Give another --out, or a "
                "copy of it."
            )
    if config.overwrite:
        if place.processes > 1:
            raise ConfigError(
                f"overwrite is given to {place.processes} processes: one would remove what another "
                f"has just written. Remove {out} first, and leave overwrite out."
            )
        try:
            for path in there:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise ConfigError(f"Cannot write to the output folder {out}: {error}") from error
        return
    foreign = [own for own in there if own.name != "log" or (own / RUN_FILE).exists()]
    if foreign and not _of_this_task(out / "log"):
        raise ConfigError(
            f"{out} already holds another run ({foreign[0].name}). Give another --out, or "
            "--overwrite."
        )


def _of_this_task(log: Path) -> bool:
    """Tell whether a log was begun by this task."""
    try:
        said = (LogReader(log).run["config"] or {}).get("score")
    except LogError:
        return False
    return isinstance(said, dict) and said.get("task") == "sft"
