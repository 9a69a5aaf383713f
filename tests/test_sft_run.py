"""Whole runs of ``--task sft`` on tiny models: what is written, and that it is right."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

transformers = pytest.importorskip("transformers", reason="needs the extra 'sft'")
import torch  # noqa: E402
from sft_runs import (  # noqa: E402
    CHAT,
    keys_of_a_run,  # noqa: F401  a fixture
    logged,
    models_once,  # noqa: F401  a fixture
    rows,
    run,
    tokenizer,
    values_of,
    write_lines,
)
from torch.nn import functional as F  # noqa: E402

from gradmimic.cli import app  # noqa: E402
from gradmimic.curate import Selection  # noqa: E402
from gradmimic.errors import (  # noqa: E402
    ConfigError,
    DirectionError,
    LossError,
    ReferenceMismatchError,
)
from gradmimic.run.config import load_task  # noqa: E402
from gradmimic.run.sft.config import SftConfig  # noqa: E402
from gradmimic.run.sft.folder import JOURNAL, OUTPUTS  # noqa: E402
from gradmimic.run.sft.job import run_sft  # noqa: E402
from gradmimic.run.sft.outcome import notes_on_sft  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def by_hand(keys, params, several):
    """Score each sample by itself from the definition: one backward pass, no padding."""
    base, better = (
        transformers.AutoModelForCausalLM.from_pretrained(keys[name])
        for name in ("model", "reference")
    )
    words = tokenizer()
    scored = dict(base.named_parameters())
    if params != "all":
        name = "lm_head.weight" if params == "head" else params
        scored = {name: scored[name]}
    v = {name: better.state_dict()[name] - own.detach() for name, own in scored.items()}
    norm = sum((own**2).sum() for own in v.values()).sqrt()
    scores, losses, theirs = [], [], []
    for row in several:
        turns = [{"role": "user", "content": row["instruction"]}]
        prompt = words.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        response = words(row["output"] + "<|end|>", add_special_tokens=False)["input_ids"]
        ids, target = torch.tensor([prompt + response]), torch.tensor(response)
        loss, other = (
            F.cross_entropy(own(ids).logits[0, len(prompt) - 1 : -1], target)
            for own in (base, better)
        )
        found = torch.autograd.grad(loss, [*scored.values()])
        slope = sum((g * d).sum() for g, d in zip(found, v.values(), strict=True))
        scores.append(float(-slope / norm))
        losses.append(loss.item())
        theirs.append(other.item())
    return np.array(scores), np.array(losses), np.array(theirs)


# What is written


@pytest.mark.parametrize("params", ["head", "all"])
def test_the_scores_are_those_of_the_definition(keys, params):
    run(keys, params=params, batch_size=5)
    scores, losses, theirs = by_hand(keys, params, rows())
    out = keys["out"]
    near = {"rtol": 1e-3, "atol": 1e-5}
    np.testing.assert_allclose(values_of(logged(out)), scores, **near)
    np.testing.assert_allclose(values_of(logged(out, column="loss")), losses, rtol=1e-5)
    np.testing.assert_allclose(values_of(logged(out, "reference_loss")), -theirs, rtol=1e-5)
    np.testing.assert_allclose(values_of(logged(out, "reducible")), losses - theirs, atol=1e-5)


def test_a_canarys_score_is_that_of_its_prompt_with_another_response(keys):
    run(keys, canary_rate=1.0)
    found = logged(keys["out"], canaries=True)
    several, losses = rows(), logged(keys["out"], column="loss", canaries=True)
    assert len(found) == len(several)
    for sample_id in list(found)[:2]:
        swapped = [
            {**several[int(sample_id)], "output": other["output"]}
            for place, other in enumerate(several)
            if place != int(sample_id)
        ]
        scores, own, _ = by_hand(keys, "head", swapped)
        place = int(np.abs(own - losses[sample_id]).argmin())
        assert own[place] == pytest.approx(losses[sample_id], rel=1e-5)
        assert scores[place] == pytest.approx(found[sample_id], rel=1e-3, abs=1e-5)


def test_without_tokens_another_engine_gives_the_same_scores(keys, tmp_path):
    run(keys, params="all")
    run(keys, params="all", tokens=False, out=str(tmp_path / "other"))
    for canaries in (False, True):
        one, other = (logged(out, canaries=canaries) for out in (keys["out"], tmp_path / "other"))
        assert one.keys() == other.keys()
        np.testing.assert_allclose(values_of(one), values_of(other), rtol=1e-3, atol=1e-5)
    assert not (tmp_path / "other" / "token_scores.parquet").exists()


def test_half_the_precision_and_some_of_the_parameters(keys, tmp_path):
    run(keys)
    run(keys, dtype="bfloat16", out=str(tmp_path / "half"))
    one, other = (values_of(logged(out)) for out in (keys["out"], tmp_path / "half"))
    assert 0.99 < np.corrcoef(one, other)[0, 1] < 1
    run(keys, params="*.q_proj.weight", out=str(tmp_path / "some"))
    scores, *_ = by_hand(keys, "model.layers.0.self_attn.q_proj.weight", rows())
    some = values_of(logged(tmp_path / "some"))
    np.testing.assert_allclose(some, scores, rtol=1e-2, atol=1e-6)


def test_a_samples_score_is_the_mean_of_its_tokens(keys):
    run(keys)
    table = pq.read_table(Path(keys["out"]) / "token_scores.parquet").to_pylist()
    own = logged(keys["out"])
    assert {row["sample_id"] for row in table} == own.keys()
    for row in table:
        assert np.mean(row["scores"]) == pytest.approx(own[row["sample_id"]], abs=1e-6)
        expected = rows()[int(row["sample_id"])]["output"] + "<|end|>"
        assert "".join(row["tokens"]) == expected


def test_a_last_batch_of_one_sample_has_a_weight(keys):
    write_lines(Path(keys["data"]), rows(5))
    run(keys, batch_size=4)
    weights = logged(keys["out"], "reference_loss", "weight")
    assert max(abs(value) for value in logged(keys["out"], "reference_loss").values()) > 4
    assert 1.0 in weights.values()
    write_lines(Path(keys["data"]), rows(1))
    outcome = run(keys, overwrite=True)  # of which no canary can be made
    assert (outcome.values["kept"], outcome.values["canaries"]) == (1, 0)


def test_what_is_kept_is_as_it_came_and_what_is_removed_says_why(keys):
    path = Path(keys["data"])
    with path.open("a", encoding="utf-8") as file:
        file.write('{"instruction": "x", "output": ""}\nno json\n')
    outcome = run(keys, rule="two_means")
    out = Path(keys["out"])
    left = {"kept.json", "kept.parquet", "kept", "report.html", JOURNAL}
    assert sorted(own.name for own in out.iterdir()) == sorted({*OUTPUTS} - left)
    assert load_task(out / "config.yaml", {}) == SftConfig(**{**keys, "rule": "two_means"})
    selection = Selection.from_parquet(out / "selection.parquet")
    assert 0 < len(selection.kept) < len(selection) == 24
    lines = path.read_bytes().splitlines(keepends=True)
    kept = sorted(map(int, selection.kept))
    assert (out / "kept.jsonl").read_bytes() == b"".join(lines[row] for row in kept)
    removed = [json.loads(line) for line in (out / "removed.jsonl").read_text().splitlines()]
    assert [own["row"] for own in removed] == sorted({*range(26)} - {*kept})
    for own in removed[:-2]:
        assert own["sample"] == rows()[own["row"]]
        assert own["reason"].startswith("removed: ")
        assert own["score"] == pytest.approx(logged(out)[own["sample_id"]])
    assert [own["reason"] for own in removed[-2:]] == [
        "a response is empty", "its line holds no JSON object"
    ]  # fmt: skip
    census = json.loads((out / "census.json").read_text())
    assert (census["kept"], census["total"]) == (24, 26)
    assert [row.count for row in outcome.census] == [24, 1, 1, 26]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["removed"] + metrics["kept"] == metrics["samples"] == 24
    assert metrics["canaries"] == 12
    assert set(metrics["auroc"]) == {"mimic", "reference_loss", "reducible"}
    assert metrics["loss"] == pytest.approx(np.mean(values_of(logged(out, column="loss"))))
    assert metrics["reference_loss"] == pytest.approx(
        -np.mean(values_of(logged(out, "reference_loss")))
    )


def test_a_parquet_stays_one_and_ids_may_be_a_column(keys, tmp_path):
    several = [{"conversations": [{"from": "human", "value": row["instruction"]},
                                  {"from": "gpt", "value": row["output"]}], "key": f"k{place}"}
               for place, row in enumerate(rows(8))]  # fmt: skip
    several[5]["key"] = "k0"
    pq.write_table(pa.Table.from_pylist(several), tmp_path / "d.parquet")
    run(keys, data=str(tmp_path / "d.parquet"), ids="key", canaries="off", canary_rate=None,
        rule="two_means")  # fmt: skip
    selection = Selection.from_parquet(Path(keys["out"]) / "selection.parquet")
    kept = pq.read_table(Path(keys["out"]) / "kept.parquet")
    assert kept.schema == pq.read_schema(tmp_path / "d.parquet")
    assert kept["key"].to_pylist() == sorted(selection.kept)
    assert len(selection) == 7


# References


def test_a_file_of_weights_is_a_reference_too(keys, tmp_path, models):
    run(keys)
    state = transformers.AutoModelForCausalLM.from_pretrained(models / "better").state_dict()
    torch.save(state, tmp_path / "better.pt")
    outcome = run(keys, reference=str(tmp_path / "better.pt"), out=str(tmp_path / "b"))
    for scorer in ("mimic", "reference_loss"):
        one, other = (logged(out, scorer) for out in (keys["out"], tmp_path / "b"))
        assert one == other
    assert not any("does not hold all weights" in note for note in outcome.notes)
    torch.save({"lm_head.weight": state["lm_head.weight"]}, tmp_path / "head.pt")
    outcome = run(keys, reference=str(tmp_path / "head.pt"), out=str(tmp_path / "h"))
    assert logged(tmp_path / "h") == logged(keys["out"])
    assert logged(tmp_path / "h", "reference_loss") == {}
    assert any("does not hold all weights" in note for note in outcome.notes)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_is_a_reference_merged_into_its_base(keys, tmp_path, models):
    peft = pytest.importorskip("peft", reason="needs the extra 'peft'")
    base = transformers.AutoModelForCausalLM.from_pretrained(models / "base")
    adapted = peft.get_peft_model(
        base, peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=2)
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    run(keys, params="all", reference=str(tmp_path / "adapter"))
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    whole = {"params": "all", "reference": str(tmp_path / "merged"), "out": str(tmp_path / "m")}
    run(keys, **whole)
    for scorer in ("mimic", "reference_loss"):
        one, other = (values_of(logged(out, scorer)) for out in (keys["out"], tmp_path / "m"))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_without_its_loss_the_reference_is_not_run(keys):
    outcome = run(keys, reference_loss=False)
    assert set(outcome.values["auroc"]) == {"mimic"}
    assert outcome.values["reference_loss"] is None


def test_several_scorers_can_be_combined(keys):
    run(keys, aggregate="stacked", canary_rate=1.0)
    selection = Selection.from_parquet(Path(keys["out"]) / "selection.parquet")
    assert len(selection) == 24


def test_a_reference_that_is_the_model_is_refused(keys):
    with pytest.raises(DirectionError, match="epoch 0 of the log"):
        run(keys, reference=keys["model"])


def test_a_reference_of_another_architecture_is_refused(keys, tmp_path):
    torch.save({"something.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ReferenceMismatchError, match=r"missing from the reference: lm_head"):
        run(keys, reference=str(tmp_path / "other.pt"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": "no/model"}, "Cannot open the tokenizer no/model"),
        ({"reference": "no/model@v2"}, "Cannot open the reference no/model@v2"),
        ({"max_length": 97}, "max_length is 97, but .*base takes 96 tokens at most"),
    ],
)
def test_models_that_are_not_there_are_named(keys, monkeypatch, more, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=message):
        run(keys, **more)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(keys, tmp_path):
    words = tokenizer(CHAT, additional_special_tokens=["<more>"])
    words.save_pretrained(tmp_path / "words")
    with pytest.raises(ConfigError, match=r"The tokenizer has \d+ tokens, but .*base has"):
        run(keys, tokenizer=str(tmp_path / "words"))


def test_a_loss_that_is_not_finite_names_the_sample(keys, tmp_path, models):
    broken = transformers.AutoModelForCausalLM.from_pretrained(models / "base")
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    tokenizer().save_pretrained(tmp_path / "broken")
    with pytest.raises(LossError, match=r"loss of sample '\d+'.* is nan at .*broken, in batch 0"):
        run(keys, model=str(tmp_path / "broken"))


# What a reader is told


VALUES = {
    "census": {"shards": {}}, "auroc": {}, "cut": 0, "chat_template": True, "reference_loss": 1.0,
    "loss": 2.0, "removed": 1, "max_length": 9, "aggregate": "mean",
}  # fmt: skip


def area(value):
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, None),
        ({"cut": 3}, "3 samples are longer than 9 tokens"),
        ({"chat_template": False}, "has no chat template"),
        ({"auroc": {"mimic": area(0.55)}}, "AUROC 0.550, where 0.5 is chance: do not trust"),
        (
            {"auroc": {"mimic": area(0.8), "reference_loss": area(0.9)}},
            "the reference’s own loss is better than the mimic score, with AUROC 0.900 against",
        ),
        ({"auroc": {"mimic": area(0.8), "reference_loss": area(0.81)}}, None),
        ({"reference_loss": 2.5}, "no better than the model"),
        ({"removed": 0}, "every sample is kept"),
        ({"census": {"shards": {"0": {"fault": "is cut"}}}}, "not be read to its end"),
    ],
)
def test_a_reader_is_told_what_to_doubt(values, said):
    notes = notes_on_sft({**VALUES, **values})
    assert (said is None and not notes) or (len(notes) == 1 and said in notes[0])


def test_the_command_prints_what_it_found(keys, tmp_path):
    from typer.testing import CliRunner

    flags = ["run", "--task", "sft", "--no-report"]
    for name in ("data", "model", "reference", "canary_rate", "out"):
        flags += [f"--{name.replace('_', '-')}", str(keys[name])]
    result = CliRunner().invoke(app, flags)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "samples scored 24" in text
    assert "rows what became of them the first 24 kept 24 total" in text
    assert f"kept: {tmp_path / 'out' / 'kept.jsonl'}" in result.output.replace("\n", "")


@pytest.mark.slow
def test_the_example_finds_answers_that_belong_to_other_questions(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sft.py", "runs/sft-data"])
    runpy.run_path(str(ROOT / "examples" / "sft.py"), run_name="__main__")
    assert "80 with another's answer" in capsys.readouterr().out
    outcome = run_sft(load_task(ROOT / "examples" / "sft.yaml", {}))
    wrong = {int(row) for row in Path("runs/sft-data/swapped.txt").read_text().split()}
    scores = logged("runs/sft")
    bad = np.array([int(name) in wrong for name in scores])
    own = values_of(scores)
    area = (own[~bad][:, None] > own[bad][None]).mean()
    assert area > 0.7
    assert abs(area - outcome.values["auroc"]["mimic"]["value"]) < 0.2
    removed = [json.loads(line) for line in Path("runs/sft/removed.jsonl").read_text().splitlines()]
    assert np.mean([own["row"] in wrong for own in removed]) > 0.5
    assert 'class="' in Path("runs/sft/report.html").read_text()
