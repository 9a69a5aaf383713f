"""The keys of ``gradmimic run --task clip``; nothing heavy is imported, since help reads them."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from gradmimic.errors import ConfigError
from gradmimic.run.keys import TASK, as_plain, check_canaries, check_least, check_positive, key


@dataclass(frozen=True)
class ClipConfig:
    """Everything that decides what a run on pairs does; paths are from the working directory."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    data: str = key(
        "",
        "Input",
        "Pairs of pictures and captions: WebDataset shards (a folder, a pattern such as "
        "'pool/{00000..00012}.tar', a URL), a Parquet or JSONL, or a Hugging Face data set.",
    )
    ids: str | None = key(
        None,
        "Input",
        "The field or column of unique ids; default: uid, else the shard's name and the key.",
    )
    image: str | None = key(
        None, "Input", "The column of pictures, where the data have several or another name."
    )
    text: str | None = key(None, "Input", "The column of captions, likewise.")
    image_size: int | None = key(
        None, "Input", "Pictures are brought to this many pixels square; default: the model's."
    )
    workers: int = key(0, "Input", "Processes that read and decode; 0: this one.")
    test: str | None = key(None, "Input", "Pairs to measure retrieval on.")
    zero_shot: str | None = key(
        None,
        "Input",
        "Labelled pictures to measure zero-shot accuracy on: a folder with one sub-folder per "
        "class, or a Parquet with a column of pictures and one of class names.",
    )
    templates: str | tuple[str, ...] | None = key(
        None,
        "Input",
        "Sentences with {} for the class, for zero-shot: a list in the file, or a .txt file with "
        "one a line. Default: a few of our own.",
    )
    reference: str | None = key(
        None,
        "Reference",
        "A better model: a file of weights, hf:ID of a hub or a folder, or open_clip:NAME/TAG.",
    )
    trusted: str | tuple[int | str, ...] | None = key(
        None,
        "Reference",
        "Pairs known to match, to train the reference on: a range of rows (0:500), ids (a list in "
        "the file, or a .txt/.npy), or other pairs.",
    )
    reference_start: Literal["same", "other"] = key(
        "same",
        "Reference",
        "Where the training of the reference starts: at the model's initial weights, or at others.",
    )
    reference_epochs: int | None = key(
        None,
        "Reference",
        "Passes over the trusted pairs; default: as many steps as the training takes.",
    )
    align: Literal["auto", "none", "rotation", "transport"] = key(
        "auto",
        "Reference",
        "How the reference is brought near: its weights as they are (none), its projections turned "
        "together (rotation), or the projections that it would have here, from what it says of the "
        "same pairs (transport). auto: transport where everything is trained from scratch and the "
        "reference has both towers, else rotation unless it is near already.",
    )
    noise_rate: float = key(
        0.0, "Noise", "The share of pairs whose captions are swapped on purpose, to measure with."
    )
    model: str = key(
        "small", "Training", "small, hf:ID of a hub or a folder, or open_clip:NAME or NAME/TAG."
    )
    start: str = key(
        "scratch",
        "Training",
        "The initial weights: scratch, pretrained (the model's own), or a file.",
    )
    lock: Literal["image", "text"] | None = key(
        None, "Training", "A tower that keeps its initial weights (LiT)."
    )
    params: str | None = key(
        None,
        "Training",
        "The scored parameters: image, text or both (the last projections), all, or a glob "
        "pattern. Default: both, or the one of the tower that is not locked.",
    )
    epochs: int = key(10, "Training", "Passes over the data.")
    batch_size: int = key(64, "Training", "Pairs per step, at most; they are each other's rivals.")
    lr: float = key(1e-3, "Training", "AdamW's learning rate.")
    weight_decay: float = key(
        0.01, "Training", "AdamW's weight decay, of matrices and kernels only."
    )
    temperature: float | Literal["auto"] | None = key(
        None,
        "Training",
        "τ of the batch weights softmax(m/τ), in the scores' unit; smaller trusts them more. "
        "Default: auto, a share of the scores' spread.",
    )
    weighting: Literal["softmax", "posterior"] = key(
        "softmax",
        "Training",
        "softmax of the scores, or how likely each pair matches as the canaries tell.",
    )
    warmup: int = key(0, "Training", "First steps that score but train on the plain mean.")
    canaries: Literal["scored", "off"] = key(
        "scored",
        "Selection",
        "Pairs with the caption of another one, beside the real ones, show what bad pairs score. "
        "Plain training never sees them.",
    )
    canary_rate: float | None = key(
        None,
        "Selection",
        "The share of pairs that serve as canaries; default: 0.1, or 0.05 of what does not fit in "
        "memory, and more where that would be few.",
    )
    rule: Literal["auto", "calibrated", "mixture", "two_means", "one_over_b"] = key(
        "auto",
        "Selection",
        "How scores become a decision. auto: calibrated by the canaries, else mixture.",
    )
    aggregate: Literal["mean", "stacked", "majority", "one_coin", "dawid_skene"] = key(
        "mean",
        "Selection",
        "Decide once on each pair's mean score, or on that combined with the reference's CLIP "
        "score as canaries tell (stacked), or let its visits vote: majority, or a label model.",
    )
    retrain: bool = key(
        False, "Selection", "Train once more, on the selected pairs, for as many steps."
    )
    task: Literal["clip"] = key("clip", "Run", TASK)
    seed: int = key(0, "Run", "Fixes initial weights, batch order and noise.")
    out: str = key("runs/run", "Run", "The folder for everything the run writes.")
    overwrite: bool = key(False, "Run", "Replace what an earlier run wrote there.")
    report: bool = key(True, "Run", "Write report.html.")

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("There is no data: give --data PATH, or `data:` in the file.")
        if self.reference is None and self.trusted is None:
            raise ConfigError(
                "There is no reference: give --trusted (pairs known to match), or --reference (a "
                "file of better weights, hf:ID, or open_clip:NAME/TAG)."
            )
        if self.reference is not None and self.trusted is not None:
            raise ConfigError("Both reference and trusted are given; expected one of them.")
        for name in ("reference_start", "reference_epochs"):
            if self.trusted is None and getattr(self, name) not in (None, "same"):
                raise ConfigError(f"{name} is given without trusted; it is about their training.")
        if self.templates is not None and self.zero_shot is None:
            raise ConfigError("templates is given without zero_shot; give both or neither.")
        if isinstance(self.templates, tuple):
            check_templates(self.templates, "templates")
        if not 0 <= self.noise_rate <= 1:
            raise ConfigError(f"noise_rate must be in [0, 1], got {self.noise_rate}.")
        if self.model == "small" and self.start == "pretrained":
            raise ConfigError(
                "model is small, which has no pretrained weights; give start: scratch, or a file."
            )
        if self.reference_start == "other" and self.start != "scratch":
            raise ConfigError(
                f"reference_start is other, but start is {self.start}: other initial weights are "
                "fresh ones. Leave reference_start out, or give start: scratch."
            )
        if self.lock is not None and self.params in ("both", self.lock):
            raise ConfigError(
                f"params is {self.params}, but the {self.lock} tower is locked and does not move; "
                "leave params out."
            )
        if self.lock is not None and self.start == "scratch":
            raise ConfigError(
                f"lock is {self.lock}, but start is scratch: a tower of fresh weights would stay "
                "as it is. Give start: pretrained, or a file of weights."
            )
        check_canaries(self, self.weighting)
        if self.aggregate == "stacked" and self.canaries == "off":
            raise ConfigError("aggregate is stacked but canaries is off; canaries tell how.")
        if self.batch_size < 2:
            raise ConfigError(
                f"batch_size must be at least 2, got {self.batch_size}: a contrastive loss needs "
                "another pair to tell a pair from."
            )
        check_least(
            self, epochs=1, image_size=1, reference_epochs=1, workers=0, warmup=0, weight_decay=0,
            seed=0,
        )  # fmt: skip
        check_positive(self, "lr", "temperature")

    @property
    def scored(self) -> str:
        """The scored parameters."""
        if self.params is not None:
            return self.params
        return {None: "both", "image": "text", "text": "image"}[self.lock]

    @property
    def tau(self) -> float | Literal["auto"]:
        """τ of the batch weights."""
        return "auto" if self.temperature is None else self.temperature

    def as_dict(self) -> dict[str, Any]:
        """Return the keys and values as plain data, which YAML and JSON can hold."""
        return as_plain(self)


def check_templates(templates: tuple[str, ...], where: str) -> None:
    """Refuse templates without a place for the class, and none at all.

    Raises:
        ConfigError: one has no ``{}``.
    """
    for template in templates or ("",):
        if "{}" not in template:
            raise ConfigError(
                f"{where} holds {template!r}; expected sentences with {{}} for the class, such as "
                "'a photograph of a {}'."
            )
