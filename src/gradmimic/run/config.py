"""A run's configuration: one YAML or TOML file, every key also a flag, a dataclass for each task.

This module is read to build ``gradmimic run --help``, so it imports nothing heavy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from gradmimic.errors import ConfigError
from gradmimic.run.clip.config import ClipConfig
from gradmimic.run.keys import (
    TASK,
    as_plain,
    check_canaries,
    check_least,
    check_positive,
    key,
    read_keys,
    resolve,
    save_keys,
)
from gradmimic.run.other_scorers import IN_TRAINING, check_names, names_of, toward_weights
from gradmimic.run.sft.config import SftConfig

SELF = ("self", "self-early", "self-average")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run on labels does; paths are from the working directory."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    data: str = key(
        "",
        "Input",
        "A .npy, .npz or Parquet of features, a folder with one "
        "sub-folder of images per class, or a Parquet of encoded images.",
    )
    labels: str | None = key(
        None, "Input", "The given labels: a column, a .npy/.txt/.csv file, or file.parquet:column."
    )
    ids: str | None = key(
        None,
        "Input",
        "Unique sample ids, likewise; default: row numbers, or the paths inside a folder.",
    )
    true_labels: str | None = key(
        None, "Input", "Labels known to be right, likewise. They only ever enter metrics."
    )
    show: str | None = key(
        None,
        "Input",
        "What the report shows of a sample: a column of texts or encoded images, likewise.",
    )
    kind: Literal["auto", "features", "images"] = key("auto", "Input", "What the data are.")
    image_size: int = key(32, "Input", "Images are stretched to this many pixels square.")
    test: str | None = key(None, "Input", "Data of the same kind to measure accuracy on.")
    test_labels: str | None = key(None, "Input", "The right labels of the test data.")
    reference: str | None = key(
        None,
        "Reference",
        "A file of better weights: .safetensors or .pt, such as the reference.pt of another run; a "
        ".parquet of outputs from anywhere (gradmimic cache); or, where there is neither, self: "
        "cross-fitted on the given labels, self-early or self-average.",
    )
    align: Literal["none", "shift", "transport", "outputs", "auto"] | None = key(
        None,
        "Reference",
        "How the reference is brought near the model: its weights as they are (none), its outputs "
        "as a head in the present features (transport) or as they are (outputs), or as the "
        "canaries prefer (auto). Default: none on a frozen trunk, else outputs.",
    )
    trusted: str | tuple[int | str, ...] | None = key(
        None,
        "Reference",
        "Samples known to be clean, to train the reference on: a range of rows "
        "(0:500), ids (a list in the file, or a .txt/.npy), or a second table of data.",
    )
    trusted_labels: str | None = key(
        None, "Reference", "The labels of the trusted samples, where they are not the given ones."
    )
    reference_epochs: int | None = key(
        None,
        "Reference",
        "Passes over the trusted samples; default: as many steps as the training takes.",
    )
    noise: Literal["none", "symmetric", "pair"] = key(
        "none", "Noise", "Corrupt labels on purpose: any other class, or the next one."
    )
    noise_rate: float = key(0.0, "Noise", "The share of labels to corrupt.")
    model: Literal["auto", "linear", "mlp", "cnn"] = key(
        "auto", "Training", "auto: linear for features, cnn for images."
    )
    hidden: int = key(64, "Training", "Width of the MLP's hidden layer or the CNN's first one.")
    trunk: Literal["frozen", "trained"] = key(
        "frozen",
        "Training",
        "The layers below the head, where there are any: the reference's, "
        "frozen; or trained with the head, from initial weights of their own.",
    )
    params: str | None = key(
        None,
        "Training",
        "The scored parameters: head, all, or a glob "
        "pattern. Default: head, and all where a trained trunk is not aligned.",
    )
    epochs: int = key(5, "Training", "Passes over the data.")
    batch_size: int = key(32, "Training", "Samples per step.")
    lr: float = key(1e-3, "Training", "AdamW's learning rate.")
    weight_decay: float = key(1e-5, "Training", "AdamW's weight decay.")
    temperature: float | Literal["auto"] | None = key(
        None,
        "Training",
        "τ of the batch weights softmax(m/τ), in the scores' unit; smaller trusts them more. auto: "
        "a share of the scores' spread. Default: 0.7, and auto where the reference is aligned.",
    )
    weighting: Literal["softmax", "posterior"] | None = key(
        None,
        "Training",
        "softmax of the scores, or how likely each sample is clean as the canaries tell. Default: "
        "posterior where the reference is aligned and there are canaries.",
    )
    warmup: int = key(0, "Training", "First steps that score but train on the plain mean.")
    reweight: Literal["all", "scored"] = key(
        "all", "Training", "Which parameters follow the batch weights."
    )
    canaries: Literal["scored", "trained", "off"] = key(
        "scored",
        "Selection",
        "Rows with labels corrupted on purpose show what bad samples score. scored: they never "
        "enter the training; trained: they do, which suits models that memorise.",
    )
    canary_rate: float | None = key(
        None,
        "Selection",
        "The share of samples that serve as canaries; default: 0.05, more where that would be "
        "fewer than 500.",
    )
    scorers: str | tuple[str, ...] | None = key(
        None,
        "Selection",
        "Other scores to log beside mimic's, from the same passes, for select --scorer and for "
        f"metrics: names with commas between, or a list in the file, of {', '.join(IN_TRAINING)}.",
    )
    rule: Literal["auto", "calibrated", "mixture", "two_means", "one_over_b"] = key(
        "auto",
        "Selection",
        "How scores become a decision. auto: calibrated by the canaries, else mixture.",
    )
    aggregate: Literal["mean", "majority", "one_coin", "dawid_skene"] = key(
        "mean",
        "Selection",
        "Decide once on each sample's mean, or let its visits vote: majority, or a label model.",
    )
    task: Literal["labels"] = key("labels", "Run", TASK)
    seed: int = key(0, "Run", "Fixes initial weights, batch order and noise.")
    out: str = key("runs/run", "Run", "The folder for everything the run writes.")
    overwrite: bool = key(False, "Run", "Replace what an earlier run wrote there.")
    report: bool = key(True, "Run", "Write report.html.")

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("There is no data: give --data PATH, or `data:` in the file.")
        if self.reference is None and self.trusted is None:
            raise ConfigError(
                "There is no reference: give --trusted (samples known to be clean), --reference "
                "(a file of better weights, or of outputs), or --reference self."
            )
        if self.reference not in (None, *SELF) and self.trusted is not None:
            raise ConfigError("Both reference and trusted are given; expected one of them.")
        for name, owner in (("test_labels", "test"), ("trusted_labels", "trusted")):
            if getattr(self, name) is not None and getattr(self, owner) is None:
                raise ConfigError(f"{name} is given without {owner}; give both or neither.")
        if (self.noise == "none") != (self.noise_rate == 0):
            raise ConfigError(
                f"noise is {self.noise} but noise_rate is {self.noise_rate}; give both or neither."
            )
        if self.trunk == "frozen" and self.params not in (None, "head"):
            raise ConfigError(
                f"params={self.params!r} asks for more than the head, but the trunk is frozen and "
                "only the head is trained; give trunk: trained as well."
            )
        if self.gives_outputs_only and self.aligned not in ("transport", "outputs"):
            raise ConfigError(
                f"align={self.align!r} compares weights, but the reference {self.reference} is a "
                "table of outputs; leave align out."
            )
        if self.aligned in ("transport", "outputs", "auto", "shift") and self.params not in (
            None,
            "head",
        ):
            raise ConfigError(
                f"align={self.aligned!r} moves the head, but params={self.params!r} asks for more; "
                "leave params out, or give align: none."
            )
        if self.align == "auto" and self.canaries == "off":
            raise ConfigError("align is auto but canaries is off; canaries tell which is best.")
        if self.aligned in ("transport", "auto") and self.epochs < 2:
            raise ConfigError(
                f"epochs is 1, but with align={self.aligned!r} the first steps are not scored, so "
                "some samples never would be; expected 2 epochs or more."
            )
        self._check_scorers()
        check_canaries(self, self.weights)
        ones = dict.fromkeys(("epochs", "batch_size", "hidden", "image_size"), 1)
        check_least(self, **ones, reference_epochs=1, warmup=0, weight_decay=0, seed=0)
        check_positive(self, "lr", "temperature")

    def _check_scorers(self) -> None:
        """Refuse names of no scorer, and scorers that lack what they ask for."""
        names = self.others
        check_names(names, IN_TRAINING)
        if "influence" in names and self.trusted is None:
            raise ConfigError("The scorer 'influence' needs trusted samples; give --trusted.")
        toward = toward_weights(names)
        if toward and (self.aligned not in ("none", "shift") or self.params not in (None, "head")):
            raise ConfigError(
                f"The scorer {toward[0]!r} compares the head's weights with the reference's, but "
                f"align is {self.aligned} and params {self.params or 'head'}. Expected align none "
                "or shift and params head; or leave it out."
            )

    @property
    def others(self) -> tuple[str, ...]:
        """The scorers that are logged beside mimic."""
        return names_of(self.scorers)

    @property
    def gives_outputs_only(self) -> bool:
        """Whether the reference is a table of outputs, without weights."""
        return Path(self.reference or "").suffix == ".parquet"

    @property
    def aligned(self) -> Literal["none", "shift", "transport", "outputs", "auto"]:
        """How the reference is brought near the model's weights."""
        if self.align is not None:
            return self.align
        if self.gives_outputs_only:
            return "outputs"
        frozen = self.trunk == "frozen" or self.params not in (None, "head")
        return "none" if frozen else "outputs"

    @property
    def weights(self) -> Literal["softmax", "posterior"]:
        """How scores become batch weights."""
        if self.weighting is not None:
            return self.weighting
        aligned = self.aligned in ("transport", "outputs", "auto") and self.temperature is None
        return "posterior" if aligned and self.canaries != "off" else "softmax"

    @property
    def tau(self) -> "float | Literal['auto']":
        """τ of the batch weights."""
        if self.temperature is not None:
            return self.temperature
        return "auto" if self.aligned in ("transport", "outputs", "auto") else 0.7

    def as_dict(self) -> dict[str, Any]:
        """Return the keys and values as plain data, which YAML and JSON can hold."""
        return as_plain(self)


Task: TypeAlias = RunConfig | ClipConfig | SftConfig
TASKS: dict[str, type[Task]] = {"labels": RunConfig, "clip": ClipConfig, "sft": SftConfig}


def load_task(file: Path | None, flags: Mapping[str, Any]) -> Task:
    """Resolve a configuration of any task: defaults, then the file's keys, then flags.

    Args:
        file: a ``.yaml``, ``.yml`` or ``.toml`` file, or None; its key ``task`` says what for.
        flags: keys and values that win over the file; those that are None are left out.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: the file is missing or malformed, a key is unknown or of another task, a value
            has another type, or keys disagree.

    Example:
        >>> load_task(None, {"task": "clip", "data": "pool", "trusted": "0:100"}).batch_size
        64
    """
    given = read_keys(file) if file is not None else {}
    where = str(file) if file is not None else "the flags"
    flags = {name: value for name, value in flags.items() if value is not None}
    task = flags.get("task", given.get("task", "labels"))
    if not isinstance(task, str) or task not in TASKS:
        raise ConfigError(f"There is no task {task!r}; the tasks are {', '.join(TASKS)}.")
    names = [field.name for field in fields(TASKS[task])]
    for name in (*given, *flags):
        if name not in names:
            raise ConfigError(_unknown(name, where if name in given else "the flags", task, names))
    return resolve(TASKS[task], {**given, **flags}, where)


def load_config(file: Path | None, flags: Mapping[str, Any]) -> RunConfig:
    """Resolve the configuration of a run on labels, likewise.

    Raises:
        ConfigError: as in :func:`load_task`, or the task is another one.

    Example:
        >>> load_config(None, {"data": "x.npy", "trusted": "0:100"}).epochs
        5
    """
    config = load_task(file, flags)
    if isinstance(config, RunConfig):
        return config
    raise ConfigError(f"The task is {config.task}, but this works with the task labels alone.")


def save_config(config: Task, file: Path) -> None:
    """Write a resolved configuration as YAML, ready to be run again."""
    save_keys(config, file)


def _unknown(name: object, where: str, task: str, names: list[str]) -> str:
    """Say what is wrong with a key: it is of another task, misspelt, or unheard of."""
    owners = [own for own, kind in TASKS.items() if name in {field.name for field in fields(kind)}]
    if owners:
        return (
            f"{where}: the key {name!r} is for the task {' or '.join(owners)}, but the task is "
            f"{task}. Leave it out, or change the task."
        )
    from difflib import get_close_matches

    near = get_close_matches(str(name), names, n=1)
    return f"{where} holds the unknown key {name!r}" + (
        f"; did you mean {near[0]!r}?" if near else f"; the keys are {', '.join(names)}."
    )
