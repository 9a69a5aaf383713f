"""TRL's ``SFTTrainer`` as a mimicking one: ids, masks, refusals, and the plain one's equal."""

import math
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from datasets import Dataset
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradmimic import ScoreLog
from gradmimic.errors import DataError, UsageError
from gradmimic.integrations.huggingface import MimicMixin, mimic_trainer
from gradmimic.integrations.trl_metrics import OncePerBatch

trl = pytest.importorskip("trl", reason="needs the extra 'trl'")

WORDS = ["[PAD]", "</s>", "<u>", "<a>", *"abcdefghijklmnopqrst"]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<a> {% generation %}"
    "{{ m['content'] }} </s> {% endgeneration %}{% else %}<u> {{ m['content'] }} {% endif %}"
    "{% endfor %}"
)


class MimicSFT(MimicMixin, trl.SFTTrainer):
    pass


def tokenizer():
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "[PAD]", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, chat_template=TEMPLATE, **names)


def model_of(**own):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, **own}
    config = LlamaConfig(
        vocab_size=len(WORDS), num_attention_heads=2, max_position_embeddings=64,
        eos_token_id=1, pad_token_id=0, bos_token_id=None, **sizes,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def better():
    torch.manual_seed(1)
    return {k: v + 0.3 * torch.randn_like(v) for k, v in model_of().state_dict().items()}


def instructions(kind, rows=7):
    """Of unequal lengths; the prompt of the fourth is longer than all that is kept."""
    found = []
    for i in range(rows):
        prompt = " ".join("abcdef"[: 2 + i % 3]) if i != 3 else " ".join("abcdefghijkl")
        answer = " ".join("ghijklmnopq"[i % 5 : 2 + i])
        if kind == "text":
            found.append({"text": f"{prompt} {answer}"})
        elif kind == "completion":
            found.append({"prompt": prompt, "completion": f" {answer}"})
        else:
            said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            found.append({"messages": said})
    return Dataset.from_list(found)


def config(folder, **own):
    options = {
        "per_device_train_batch_size": 2, "num_train_epochs": 1, "learning_rate": 0.5,
        "optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "report_to": "none",
        "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "bf16": False,
        "logging_steps": 1, "dataloader_pin_memory": False, "activation_checkpointing": False,
        "max_length": 12,
    }  # fmt: skip
    return trl.SFTConfig(str(folder), **{**options, **own})


def made(kind, folder, cls=MimicSFT, data=None, model=None, options=None, **own):
    return cls(
        model=model_of() if model is None else model,
        args=config(folder, assistant_only_loss=kind == "chat", **own),
        train_dataset=instructions(kind) if data is None else data,
        processing_class=tokenizer(),
        **(options or {}),
    )


def losses_of(model, row, kind):
    """ℓ of an instruction, by hand: the mean over the tokens that count."""
    encode = tokenizer().encode
    if kind == "completion":
        asked, said = encode(row["prompt"]), encode(f"{row['completion']} </s>")
    elif kind == "chat":
        user, assistant = row["messages"]
        asked = encode(f"<u> {user['content']} <a>")
        said = encode(f"{assistant['content']} </s>")
    else:
        asked, said = [], encode(f"{row['text']} </s>")
    words = torch.tensor((asked + said)[:12])
    labels = words.clone()
    labels[: len(asked)] = -100
    with torch.no_grad():
        logits = model(words[None]).logits[0]
    return F.cross_entropy(logits[:-1], labels[1:]).item()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind", [pytest.param("text", marks=SLOW), "completion", pytest.param("chat", marks=SLOW)]
)
def test_an_infinite_temperature_trains_as_the_plain_trainer(kind, tmp_path):
    """Seven rows by two; by twos the last step has one micro-batch less than the others."""
    own = {"gradient_accumulation_steps": 3, "activation_checkpointing": kind == "text"}
    plain = made(kind, tmp_path, trl.SFTTrainer, **own)
    plain.train()
    options = {"reference": better(), "temperature": math.inf}
    mimic = made(kind, tmp_path, options=options, **own)
    mimic.train()
    torch.testing.assert_close(
        dict(mimic.model.state_dict()), dict(plain.model.state_dict()), rtol=1e-5, atol=1e-7
    )
    for found, expected in zip(mimic.state.log_history, plain.state.log_history, strict=True):
        for name in set(expected) - {"train_runtime", "total_flos"}:
            if not name.endswith("per_second"):
                assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    assert {"mean_token_accuracy", "num_tokens", "mimic/score"} < set(mimic.state.log_history[0])


@pytest.mark.parametrize(
    ("kind", "names"),
    [("text", None), ("chat", [f"i{n}" for n in range(7)])]
    + [
        pytest.param(*case, marks=SLOW)
        for case in (
            ("completion", None),
            ("chat", None),
            *((kind, [f"i{n}" for n in range(7)]) for kind in ("text", "completion")),
        )
    ],
)
def test_ids_survive_shuffling_truncation_and_rows_that_are_dropped(kind, names, tmp_path):
    data = instructions(kind)
    if names is not None:
        data = data.add_column("sample_id", names)
    log = ScoreLog(tmp_path / "log")
    options = {"reference": better(), "score_log": log}
    still = {"learning_rate": 0.0, "shuffle_dataset": True, "truncation_mode": "keep_start"}
    trainer = made(kind, tmp_path, data=data, options=options, **still)
    trainer.train()
    rows = log.scan(["sample_id", "loss"]).to_pylist()
    kept = range(7) if kind == "text" else [0, 1, 2, 4, 5, 6]  # no word of the fourth's answer fits
    known = [name if names is None else names[name] for name in kept]
    assert sorted(row["sample_id"] for row in rows) == known
    for row in rows:
        name = row["sample_id"]
        own = data[name if names is None else names.index(name)]
        assert row["loss"] == pytest.approx(losses_of(model_of(), own, kind), rel=1e-4)
    log.close()


def test_a_trainer_that_was_there_already_has_the_rows_that_it_prepared(tmp_path):
    plain = made("completion", tmp_path, trl.SFTTrainer, learning_rate=0.0)
    trainer = mimic_trainer(plain, reference=better(), score_log=tmp_path / "log")
    trainer.train()
    found = trainer.score_log.scan(["sample_id", "loss"]).to_pylist()
    assert sorted(row["sample_id"] for row in found) == list(range(6))  # of train_dataset's
    for row in found:
        own = trainer.train_dataset[row["sample_id"]]
        own["completion"] = own["completion"].removesuffix("</s>")  # which TRL has added
        expected = losses_of(model_of(), own, "completion")
        assert row["loss"] == pytest.approx(expected, rel=1e-4)
    trainer.score_log.close()


def test_ids_are_of_the_rows_that_were_passed_by_place_too(tmp_path):
    data = instructions("completion")
    own = {"processing_class": tokenizer(), "reference": better()}
    trainer = MimicSFT(model_of(), config(tmp_path), None, data, **own)
    assert trainer.train_dataset["sample_id"][:] == [0, 1, 2, 4, 5, 6]


def test_a_stream_with_ids_is_trained_on(tmp_path):
    data = instructions("completion").add_column("uid", list(range(40, 47)))
    log = ScoreLog(tmp_path / "log")
    options = {"reference": better(), "score_log": log, "id_column": "uid"}
    stream = data.to_iterable_dataset()
    made("completion", tmp_path, data=stream, options=options, max_steps=3).train()
    assert sorted(log.scan(["sample_id"])["sample_id"].to_pylist()) == [40, 41, 42, 44, 45, 46]
    log.close()


@pytest.mark.parametrize("own", [{"packing": True}, {"padding_free": True, "max_length": None}])
@pytest.mark.filterwarnings("ignore:.*")  # TRL's, of the attention that packing needs
def test_packed_rows_are_refused_before_any_is_packed(own, tmp_path):
    with pytest.raises(UsageError, match=r"several sequences.*packing=False, padding_free=False"):
        made("text", tmp_path, options={"reference": better()}, **own)
    there = made("text", tmp_path, trl.SFTTrainer, **own)
    with pytest.raises(UsageError, match="Packed sequences cannot be weighed one by one"):
        mimic_trainer(there, reference=better()).train()


def test_ids_are_checked_before_the_data_are_prepared(tmp_path):
    data = instructions("text").add_column("sample_id", [0] * 7)
    with pytest.raises(DataError, match="6 rows have an id in the column 'sample_id' that another"):
        made("text", tmp_path, data=data, options={"reference": better()})


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_of_a_config_are_trained_and_scored(tmp_path):
    peft = pytest.importorskip("peft", reason="needs the extra 'peft'")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    options = {"reference": better(), "peft_config": lora, "temperature": 0.1}
    trainer = made("completion", tmp_path, options=options)
    trainer.train()
    first = trainer.state.log_history[0]
    assert 1 <= first["mimic/effective_batch_size"] <= 2
    assert first["mimic/score"] != 0


def test_the_model_runs_once_a_batch(tmp_path):
    calls = []
    trainer = made("text", tmp_path, options={"reference": better()})
    trainer.model.model.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    assert len(calls) == 4  # TRL would run it again for entropy and accuracy


def test_metrics_of_logits_are_those_of_trl(tmp_path):
    model = made("text", tmp_path, trl.SFTTrainer).model  # TRL gives it a head for metrics
    words = torch.tensor([[4, 5, 6, 7, 8], [9, 10, 11, 0, 0]])
    labels = torch.where(words > 5, words, -100)
    once = OncePerBatch(model)
    with torch.no_grad():
        expected = model(words, labels=labels, fused_lm_head=True)
        once(words)
        found = once(words, labels=labels, fused_lm_head=True)
    for name in ("entropy", "is_top1", "label_mask", "log_probs"):  # the last by another pass
        own, right = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(own.float(), right.float())
    assert once.config is model.config


@pytest.mark.slow
def test_the_example_finds_wrong_answers(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "sft_trainer.py", tmp_path],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = re.search(r"AUROC of wrong answers, by mean score: (\S+)", done.stdout)
    assert float(told[1]) > 0.9
    right = dict(re.findall(r"(\S+): loss .* right tokens (\S+)%", done.stdout))
    assert float(right["re-weighted"]) >= float(right["plain"])
