"""What a mimicking ``SFTTrainer`` costs: its steps against those of TRL's own.

    operations = those of a step's matrix products / the plain step's      the same on any machine
    time       = median_t (other_t / plain_t)        in turns, in one process

A step is the next batch of the trainer's own loader, ``training_step``, the optimizer's step. The
head is scored, every score is logged. TRL's own loss never forms all logits; one that is passed as
``compute_loss_func`` has them, and costs a second pass of the model for TRL's metrics. Ours is of
that kind, and takes the metrics from its logits: the middle row says what that spares.

Run: python benchmarks/sft_trainer.py [--quick | --operations]
"""

import argparse
import tempfile
import warnings
from typing import Any

import torch
import transformers
from datasets import Dataset
from harness import interleave, save
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from trainer_step import Step

from gradmimic.extras import import_extra

trl = import_extra("trl", "trl")
WORDS, ROWS, LENGTH, BATCH = 8192, 256, 64, 8
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
}


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


def tokenizer() -> Any:
    kind: Any = transformers.PreTrainedTokenizerFast
    words = {f"w{i}": i for i in range(WORDS)}
    names = {"pad_token": "w0", "eos_token": "w1", "unk_token": "w2"}
    return kind(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w2")), **names)  # noqa: S106


def mean_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    logits = outputs.logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


def step_of(folder: str, *, checkpointing: bool, mimics: bool, own: Any = None) -> Step:
    torch.manual_seed(0)
    model, reference = llama(), llama()
    words = torch.randint(3, WORDS, (ROWS, LENGTH)).tolist()
    args = trl.SFTConfig(
        folder, per_device_train_batch_size=BATCH, report_to="none", use_cpu=True, bf16=False,
        dataloader_pin_memory=False, disable_tqdm=True, activation_checkpointing=checkpointing,
        log_level="error",
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model,
        args,
        train_dataset=Dataset.from_dict({"input_ids": words}),
        processing_class=tokenizer(),
        compute_loss_func=own,
    )
    step = Step(trainer, reference if mimics else None, folder)
    if checkpointing:
        trainer.model.activation_checkpointing_enable()
    return step


def added_product(_: Any, a: Any, b: Any, **__: Any) -> int:
    return int(2 * a[0] * a[1] * b[1])  # [n, k] by [k, m]


def operations(step: Step) -> int:
    step()  # the first one settles which layer is the head
    in_place = {torch.ops.aten.addmm_: added_product}  # TRL's, which torch does not count by itself
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        step()
    return int(counter.get_total_flops())


def main() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few turns")
    parser.add_argument("--operations", action="store_true", help="count, and time nothing")
    given = parser.parse_args()
    turns = 0 if given.operations else 5 if given.quick else 40
    results: list[dict[str, Any]] = []
    table = Table("activation checkpointing", "step", "operations, plain = 1", "time")
    for checkpointing in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            both: dict[str, Any] = {"folder": folder, "checkpointing": checkpointing}
            steps: dict[str, Step] = {
                "SFTTrainer": step_of(**both, mimics=False),
                "SFTTrainer with compute_loss_func": step_of(**both, mimics=False, own=mean_loss),
                "mimicking SFTTrainer": step_of(**both, mimics=True),
                "SFTTrainer again": step_of(**both, mimics=False),
            }
            counts = {name: operations(step) for name, step in steps.items()}
            times = interleave(steps, turns=turns) if turns else {}
            steps["mimicking SFTTrainer"].trainer.score_log.close()
            for name, count in counts.items():
                own: dict[str, Any] = {"checkpointing": checkpointing, "step": name}
                own["operations"] = count / counts["SFTTrainer"]
                time = "" if name not in times else f"{times[name].ratio:.2f}"
                results.append(own | (times[name]._asdict() if name in times else {}))
                table.add_row(str(checkpointing), name, f"{own['operations']:.3f}", time)
    Console().print(table)
    if not given.quick:
        option = " --operations" if given.operations else ""
        save("sft_trainer", results, f"python benchmarks/sft_trainer.py{option}")


if __name__ == "__main__":
    main()
