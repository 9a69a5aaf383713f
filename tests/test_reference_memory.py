"""References of large models: what is read of them, and how their names and dtypes may differ."""

import json

import pytest
import torch
from test_checkpoint import reads  # noqa: F401  a fixture
from torch.nn import functional as F

from gradmimic import GradMimic, load_reference, mimic_scores
from gradmimic.errors import ReferenceMismatchError

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from gradmimic.integrations.peft import lora_reference  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def llama(seed=0, *, tied=False, kind=transformers.LlamaForCausalLM):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=30, tie_word_embeddings=tied,
    )  # fmt: skip
    return kind(config)


def adapted(seed=1):
    base = llama()
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(base, config)


def losses(model, ids):
    logits = model(input_ids=ids).logits
    each = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return each.mean(1)


IDS = torch.randint(0, 30, (4, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    """A full fine-tune in shards, one for every few tensors."""
    llama(seed=9).save_pretrained(tmp_path / "full", max_shard_size="3KB")
    index = json.loads((tmp_path / "full" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    return tmp_path / "full"


def test_of_shards_only_what_is_scored_is_read(folder, reads):  # noqa: F811
    scores = mimic_scores(llama(), folder, IDS, losses)
    assert reads == ["lm_head.weight"]
    torch.testing.assert_close(scores, mimic_scores(llama(), llama(seed=9), IDS, losses))
    reads.clear()
    mimic = GradMimic(llama(), folder, params="model.layers.1.mlp.*")
    assert {name.rpartition(".")[0] for name in reads} == {
        f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up", "down")
    }
    assert mimic.aligned == "none"


def test_of_a_full_fine_tune_only_the_adapted_layers_are_read_and_none_is_kept(folder, reads):  # noqa: F811
    model = adapted()
    reference, params = lora_reference(model, folder)
    assert sorted(reads) == [
        f"model.layers.{i}.self_attn.{part}_proj.weight" for i in range(3) for part in "qv"
    ]
    assert not reference.named.tensors._read  # W_ref − W is all that stays
    found = mimic_scores(model, reference, IDS, losses, params=params)
    inmemory, params = lora_reference(model, llama(seed=9))
    torch.testing.assert_close(found, mimic_scores(model, inmemory, IDS, losses, params=params))


def test_of_an_adapter_its_two_matrices_are_read_and_nothing_of_its_base(tmp_path, reads):  # noqa: F811
    adapted(seed=5).save_pretrained(tmp_path)
    lora_reference(adapted(), tmp_path)
    assert len(reads) == len(set(reads)) == 12
    assert all(".lora_" in name for name in reads)


def test_a_tied_head_is_found_under_the_name_of_the_embedding(tmp_path):
    better = llama(seed=9, tied=True)
    better.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_reference(tmp_path).tensors
    found = mimic_scores(llama(tied=True), tmp_path, IDS, losses)
    torch.testing.assert_close(found, mimic_scores(llama(tied=True), better, IDS, losses))


def test_a_base_model_without_a_head_serves_its_layers_and_no_head(tmp_path):
    base = llama(seed=9).model
    base.save_pretrained(tmp_path)
    patterns = "model.layers.2.*"
    with pytest.warns(UserWarning, match="prefix '' for 'model.'"):
        found = mimic_scores(llama(), tmp_path, IDS, losses, params=patterns)
    exact = mimic_scores(llama(), llama(seed=9), IDS, losses, params=patterns)
    torch.testing.assert_close(found, exact)
    with pytest.raises(ReferenceMismatchError, match=r"missing from the reference: lm_head.weight"):
        mimic_scores(llama(), tmp_path, IDS, losses)


def test_a_model_with_a_head_is_no_reference_of_its_base(tmp_path):
    llama(seed=9).save_pretrained(tmp_path)
    student = llama(kind=transformers.LlamaModel)
    with pytest.raises(ReferenceMismatchError, match=r"unknown to the model: lm_head.weight"):
        mimic_scores(
            student, tmp_path, IDS,
            lambda m, ids: m(input_ids=ids).last_hidden_state.square().mean((1, 2)),
            params="layers.2.*",
        )  # fmt: skip


@pytest.mark.parametrize(("file", "model"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_the_files_dtype_may_be_another_than_the_models(tmp_path, file, model):
    better = llama(seed=9).to(getattr(torch, file))
    better.save_pretrained(tmp_path)
    student = llama().to(getattr(torch, model))
    found = mimic_scores(student, tmp_path, IDS, losses)
    exact = mimic_scores(student, better.to(student.dtype), IDS, losses)
    assert torch.equal(found, exact)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    twin = peft.get_peft_model(student, config)
    scored = [lora_reference(twin, source) for source in (tmp_path, better)]
    pair = [mimic_scores(twin, ref, IDS, losses, params=params) for ref, params in scored]
    assert torch.equal(*pair)


def test_an_adapter_of_the_hub_comes_with_its_configuration(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    adapted(seed=5).save_pretrained(tmp_path / "there")
    asked = []

    def download(repo, name, revision=None, **_options):
        asked.append((repo, name, revision))
        return str(tmp_path / "there" / name)

    monkeypatch.setattr(hub, "list_repo_files", lambda *_, **__: ["adapter_model.safetensors"])
    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr("peft.config.hf_hub_download", download)
    reference, _ = lora_reference(adapted(), "owner/name", revision="v2")
    assert {revision for *_, revision in asked} == {"v2"}
    assert reference.source == "owner/name at v2"
    model = adapted()
    here = lora_reference(model, tmp_path / "there")
    torch.testing.assert_close(
        *(
            mimic_scores(model, ref, IDS, losses, params=own)
            for ref, own in (here, lora_reference(model, "owner/name"))
        )
    )
