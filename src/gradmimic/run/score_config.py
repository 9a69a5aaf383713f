"""The keys of ``gradmimic score``, a dataclass for each task.

This module is read to build ``gradmimic score --help``, so it imports nothing heavy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from gradmimic.errors import ConfigError
from gradmimic.run.keys import check_least, check_positive, check_rate, key, resolve
from gradmimic.run.other_scorers import OFFLINE, check_names, names_of, toward_weights

CHECKPOINTS = (
    "Weights of one training, in order: files, folders of them, or patterns; with the task clip "
    "also hf:… and open_clip:ARCHITECTURE/TAG. Each is a visit of every sample."
)
_CANARIES = "Score some samples under wrong {} too: they show what bad samples score."
_RATE = (
    "The share of samples that serve as canaries; default: 0.05, more where that would be fewer "
    "than 500."
)


@dataclass(frozen=True)
class ScoreConfig:
    """Everything that decides what ``gradmimic score`` does with labelled data."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    data: str = key("", "Input", "Everything that `gradmimic run` reads with this task.")
    checkpoints: Sequence[str] = key((), "Input", CHECKPOINTS)
    reference: str = key(
        "",
        "Input",
        "Better weights: a file, a folder, a hub id; or a .parquet of outputs (gradmimic cache).",
    )
    labels: str | None = key(
        None, "Input", "The given labels: a column, a .npy/.txt/.csv file, or file.parquet:column."
    )
    ids: str | None = key(
        None,
        "Input",
        "Unique sample ids, likewise; default: row numbers, or the paths inside a folder.",
    )
    kind: Literal["auto", "features", "images"] = key("auto", "Input", "What the data are.")
    image_size: int = key(32, "Input", "What the models were trained at, in pixels.")
    align: Literal["none", "shift", "outputs"] | None = key(
        None,
        "Scores",
        "How the reference is brought near: its weights (none), or what it says of each sample "
        "(outputs). Default: none where it shares the layers below the head with all checkpoints, "
        "else outputs.",
    )
    params: str = key("head", "Scores", "The scored parameters: head, all, or a glob pattern.")
    engine: str = key("auto", "Scores", "auto, forward, ghost, secant (not exact) or oracle.")
    temperature: float | None = key(
        None,
        "Scores",
        "τ of the logged weights softmax(m/τ). Default: 0.7; with align outputs, 0.7 of the "
        "scores' spread in the batch.",
    )
    batch_size: int = key(128, "Scores", "Samples that share a softmax.")
    scorers: str | tuple[str, ...] | None = key(
        None,
        "Scores",
        "Other scores to log beside mimic's, from the same passes: names with commas between, of "
        f"{', '.join(OFFLINE)}.",
    )
    canaries: Literal["scored", "off"] = key("scored", "Scores", _CANARIES.format("labels"))
    canary_rate: float | None = key(None, "Scores", _RATE)
    seed: int = key(0, "Scores", "Decides the canaries.")
    task: Literal["labels"] = key(
        "labels", "Output", "What the models are: classifiers (labels), or contrastive (clip)."
    )
    out: str = key("runs/scores", "Output", "The folder for log/, and what goes beside it.")
    overwrite: bool = key(False, "Output", "Replace scores of other data or models.")

    def __post_init__(self) -> None:
        _check_given(self)
        check_least(self, batch_size=1, image_size=1, seed=0)
        check_rate(self)
        check_positive(self, "temperature")
        if self.params != "head" and (self.align in ("shift", "outputs") or self.is_table):
            raise ConfigError(
                f"params={self.params!r} asks for more than the head, but outputs and shift move "
                "the head alone; leave params out, or give align none and a file of weights."
            )
        if self.is_table and self.align in ("none", "shift"):
            raise ConfigError(
                f"align={self.align!r} compares weights, but the reference {self.reference} is a "
                "table of outputs; leave align out."
            )
        check_names(self.others, OFFLINE)
        toward = toward_weights(self.others)
        if toward and (self.is_table or self.align == "outputs" or self.params != "head"):
            raise ConfigError(
                f"The scorer {toward[0]!r} compares the head's weights with the reference's. "
                "Expected a file of weights, align none or shift, and params head; or leave it out."
            )

    @property
    def others(self) -> tuple[str, ...]:
        """The scorers that are logged beside mimic."""
        return names_of(self.scorers)

    @property
    def is_table(self) -> bool:
        """Whether the reference is a table of outputs, without weights."""
        return Path(self.reference).suffix == ".parquet"


@dataclass(frozen=True)
class PairScoreConfig:
    """Everything that decides what ``gradmimic score --task clip`` does."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    data: str = key(
        "",
        "Input",
        "Pairs of pictures and captions: WebDataset shards (a folder, a pattern such as "
        "'pool/{00000000..00000012}.tar', a URL), a Parquet or JSONL, or a Hugging Face data set.",
    )
    checkpoints: Sequence[str] = key((), "Input", CHECKPOINTS)
    reference: str = key(
        "",
        "Input",
        "A better model: a file of weights, a folder, a hub id, hf:… (a folder or hub id), or "
        "open_clip:ARCHITECTURE/TAG.",
    )
    model: str | None = key(
        None,
        "Input",
        "What a bare file of weights is of: small, hf:… (a folder or hub id), or "
        "open_clip:ARCHITECTURE. A config.yaml beside it says so too.",
    )
    ids: str | None = key(
        None,
        "Input",
        "Where a pair's unique id is: a field or a column. Default: uid where there are any, else "
        "the shards' names and keys.",
    )
    image: str | None = key(
        None, "Input", "The column of pictures, where the data have several or another name."
    )
    text: str | None = key(None, "Input", "The column of captions, likewise.")
    image_size: int | None = key(
        None, "Input", "Pictures are brought to this many pixels square; default: the model's."
    )
    workers: int = key(0, "Input", "Processes that read and decode, for each that scores; 0: none.")
    align: Literal["auto", "none", "rotation", "transport"] = key(
        "auto",
        "Scores",
        "How the reference is brought near: its projections turned together (rotation), the ones "
        "it would have on the checkpoint's features, by what it says of the first pairs "
        "(transport), or its weights as they are (none). auto: none where they are near already; "
        "else rotation where the layers below are the same, and transport where it can be.",
    )
    params: str = key(
        "both",
        "Scores",
        "The scored parameters: image, text or both (the last projections), all, or a glob "
        "pattern.",
    )
    engine: str = key("auto", "Scores", "auto, forward, ghost, secant (not exact) or oracle.")
    temperature: float | None = key(
        None,
        "Scores",
        "τ of the logged weights softmax(m/τ). Default: 0.7 of the scores' spread in the batch.",
    )
    batch_size: int = key(256, "Scores", "Pairs at a time, at most; they are each other's rivals.")
    clip_score: bool = key(
        True,
        "Scores",
        "Log the reference's CLIP score of each pair too, where it is a whole model that takes the "
        "same inputs; that takes a pass of its own.",
    )
    canaries: Literal["scored", "off"] = key("scored", "Scores", _CANARIES.format("captions"))
    canary_rate: float | None = key(None, "Scores", _RATE)
    seed: int = key(0, "Scores", "Decides the canaries, and which pairs of a shard share a batch.")
    task: Literal["clip"] = key(
        "clip", "Output", "What the models are: classifiers (labels), or contrastive (clip)."
    )
    out: str = key("runs/scores", "Output", "The folder for log/, and what goes beside it.")
    overwrite: bool = key(False, "Output", "Replace scores of other data or models.")

    def __post_init__(self) -> None:
        _check_given(self)
        if self.batch_size < 2:
            raise ConfigError(
                f"batch_size must be at least 2, got {self.batch_size}: a contrastive loss needs "
                "another pair to tell a pair from."
            )
        check_least(self, image_size=1, workers=0, seed=0)
        check_rate(self)
        check_positive(self, "temperature")


SCORE_TASKS: dict[str, type[ScoreConfig] | type[PairScoreConfig]] = {
    "labels": ScoreConfig,
    "clip": PairScoreConfig,
}


def load_score(flags: Mapping[str, Any]) -> ScoreConfig | PairScoreConfig:
    """Make the configuration of a task from flags; those that are None are left out.

    Raises:
        ConfigError: there is no such task, a flag is of another one, has another type, or flags
            disagree.

    Example:
        >>> given = {"data": "pool", "checkpoints": ["small.pt"], "reference": "better.pt"}
        >>> load_score({**given, "task": "clip"}).batch_size, load_score(given).batch_size
        (256, 128)
    """
    given = {name: value for name, value in flags.items() if value is not None}
    task = given.get("task", "labels")
    if task not in SCORE_TASKS:
        raise ConfigError(f"There is no task {task!r}; the tasks are {', '.join(SCORE_TASKS)}.")
    names = {field.name for field in fields(SCORE_TASKS[task])}
    for name in given:
        if name not in names:
            flag = "--" + name.replace("_", "-")
            other = next(own for own in SCORE_TASKS if own != task)
            raise ConfigError(
                f"{flag} is for the task {other}, but the task is {task}. Leave it out, or give "
                f"--task {other}."
            )
    return resolve(SCORE_TASKS[task], given, "the flags")


def _check_given(config: ScoreConfig | PairScoreConfig) -> None:
    """Refuse a configuration without data or reference."""
    if not config.data:
        raise ConfigError("There is no data: give --data PATH.")
    if not config.reference:
        raise ConfigError("There is no reference: give --reference, better weights.")
