"""The keys of ``gradmimic run --task sft``; nothing heavy is imported, since help reads them."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from gradmimic.errors import ConfigError
from gradmimic.run.keys import TASK, as_plain, check_least, check_rate, key


@dataclass(frozen=True)
class SftConfig:
    """Everything that decides how instructions are scored; paths are from the working directory."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    data: str = key(
        "",
        "Input",
        "Instructions with responses, in the shapes of Alpaca, chat or prompt and completion: "
        ".jsonl, .json, .parquet, a folder or pattern of them, a URL, or a Hugging Face data set "
        "(a saved folder, or hf://datasets/owner/name:split).",
    )
    ids: str | None = key(None, "Input", "The column of unique ids; default: row numbers.")
    max_length: int | None = key(
        None,
        "Input",
        "Tokens of a sample; what is longer is cut at its end. Default: 2048, or what the model "
        "takes where that is less.",
    )
    reference: str | None = key(
        None,
        "Reference",
        "A better sibling of the model, such as its instruct version: a folder, a hub id, "
        "id@revision, a file of weights, or the folder of a LoRA adapter.",
    )
    reference_loss: bool = key(
        True,
        "Reference",
        "Log the reference's own loss too, the strongest rival of the mimic score. It takes a "
        "forward pass of the reference, and its whole model in memory.",
    )
    model: str = key("", "Model", "What is to be fine-tuned: a folder, a hub id, or id@revision.")
    tokenizer: str | None = key(
        None,
        "Model",
        "Whose tokenizer and chat template are used: a folder or a hub id. Default: the model's.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = key(
        "float32", "Model", "The weights' type; half of it takes half the memory, and blurs scores."
    )
    params: str = key("head", "Scores", "The scored parameters: head, all, or a glob pattern.")
    tokens: bool = key(
        True, "Scores", "Write the score of every token of the responses; it takes no further pass."
    )
    batch_size: int = key(8, "Scores", "Samples at a time, all of about the same length.")
    canaries: Literal["scored", "off"] = key(
        "scored",
        "Selection",
        "Samples with another one's response, beside the real ones, show what bad samples score.",
    )
    canary_rate: float | None = key(
        None,
        "Selection",
        "The share of samples that serve as canaries; default: 0.05, more where that would be "
        "fewer than 500.",
    )
    rule: Literal["auto", "calibrated", "mixture", "two_means", "one_over_b"] = key(
        "auto",
        "Selection",
        "How scores become a decision. auto: calibrated by the canaries, else mixture.",
    )
    aggregate: Literal["mean", "stacked"] = key(
        "mean",
        "Selection",
        "Decide on the mimic score, or on that combined with the reference's loss as canaries "
        "tell (stacked).",
    )
    task: Literal["sft"] = key("sft", "Run", TASK)
    seed: int = key(0, "Run", "Decides the canaries.")
    out: str = key("runs/run", "Run", "The folder for everything the run writes.")
    overwrite: bool = key(False, "Run", "Replace what an earlier run wrote there.")
    report: bool = key(True, "Run", "Write report.html.")

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("There is no data: give --data PATH, or `data:` in the file.")
        if not self.model:
            raise ConfigError(
                "There is no model: give --model, what is to be fine-tuned (a folder or a hub id)."
            )
        if not self.reference:
            raise ConfigError(
                "There is no reference: give --reference, a better sibling of the model such as "
                "its instruct version (a folder, a hub id, or a file of weights)."
            )
        if self.canaries == "off" and self.rule == "calibrated":
            raise ConfigError("rule is calibrated but canaries is off; it needs canaries.")
        if self.aggregate == "stacked" and self.canaries == "off":
            raise ConfigError("aggregate is stacked but canaries is off; canaries tell how.")
        if self.aggregate == "stacked" and not self.reference_loss:
            raise ConfigError("aggregate is stacked but reference_loss is off; leave one out.")
        check_rate(self)
        check_least(self, batch_size=1, max_length=2, seed=0)

    def as_dict(self) -> dict[str, Any]:
        """Return the keys and values as plain data, which YAML and JSON can hold."""
        return as_plain(self)
