"""What a reference costs in memory: the peak of a process that scores, over one that only runs.

    extra = (peak of scoring − peak of a plain pass) / size of the model

A Llama of 134 million parameters, 536 MB in float32, and a reference of the same size, both in
random weights, in shards of 100 MB on disk. Each way runs in a process of its own, which loads the
model, scores one batch of 4 x 32 tokens, and tells its most resident memory (VmHWM), and which
bytes of the reference it read.

Run: python benchmarks/reference_memory.py [--quick]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

WAYS = {
    "plain": "the model alone, one pass",
    "head": "params='head'",
    "adapter": "LoRA, params='adapter', reference an adapter",
    "weights, adapter": "LoRA, params='weights', reference an adapter",
    "weights, full": "LoRA, params='weights', reference a full fine-tune",
    "all": "params='all'",
    "all, bf16": "params='all', reference in bfloat16",
}
TARGETS = ["q_proj", "v_proj"]


def build(folder: Path, *, quick: bool) -> None:
    """Write a model, a full fine-tune of it, the same in bfloat16, and an adapter."""
    import peft
    import torch
    import transformers

    wide, layers = (256, 2) if quick else (1024, 8)
    config = transformers.LlamaConfig(
        hidden_size=wide, intermediate_size=wide * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=8, vocab_size=16000, tie_word_embeddings=False,
    )  # fmt: skip
    for seed, name in enumerate(("model", "full")):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
        model.save_pretrained(folder / name, max_shard_size="100MB")
    model.bfloat16().save_pretrained(folder / "full-bf16", max_shard_size="100MB")
    adapter = peft.get_peft_model(
        model, peft.LoraConfig(r=8, target_modules=TARGETS, init_lora_weights=False)
    )
    adapter.save_pretrained(str(folder / "adapter"))


def score(folder: Path, way: str) -> dict[str, Any]:
    """Score one batch in this process; return peak and bytes read."""
    import peft
    import torch
    import transformers
    from torch.nn import functional as F

    from gradmimic import mimic_scores
    from gradmimic.checkpoint import SafeTensors
    from gradmimic.integrations.peft import lora_reference

    read = 0
    plainly = SafeTensors.read

    def counted(self: SafeTensors, name: str) -> torch.Tensor:
        nonlocal read
        tensor = plainly(self, name)
        read += tensor.numel() * tensor.element_size()
        return tensor

    SafeTensors.read = counted  # type: ignore[method-assign]

    def losses(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids).logits
        each = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        return each.mean(1)

    model: Any = transformers.LlamaForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32
    )
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    ids = torch.randint(0, 16000, (4, 32))
    if way in ("adapter", "weights, adapter", "weights, full"):
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=TARGETS))
        source = folder / ("full" if way == "weights, full" else "adapter")
        reference, params = lora_reference(model, source, way.partition(",")[0])
        mimic_scores(model, reference, ids, losses, params=params)
    elif way == "plain":
        with torch.no_grad():
            losses(model, ids)
    else:
        source = folder / ("full-bf16" if way == "all, bf16" else "full")
        mimic_scores(model, source, ids, losses, params=way.partition(",")[0])
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return {"peak": peak, "size": size, "read": read}


def main() -> None:
    """Build once, run every way in its own process, and save the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model; nothing is saved")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.build:
        build(given.build, quick=given.quick)
        return
    if given.child:
        folder, way = given.child
        print(json.dumps(score(Path(folder), way)))
        return
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        quick = ["--quick"] if given.quick else []
        subprocess.run([sys.executable, __file__, "--build", folder, *quick], check=True)  # noqa: S603
        for way in WAYS:
            command = [sys.executable, __file__, "--child", folder, way]
            done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
            results[way] = json.loads(done.stdout.splitlines()[-1])
            own, plain = results[way], results["plain"]
            own["extra"] = (own["peak"] - plain["peak"]) / own["size"]
            own["share read"] = own["read"] / own["size"]
            told = f"peak {own['peak'] / 1e6:6.0f} MB  extra {own['extra']:5.2f} of the model"
            print(f"{WAYS[way]:55} {told}  read {own['share read']:.3f}", flush=True)
    if not given.quick:
        from harness import save

        save("reference_memory", results, "python benchmarks/reference_memory.py")


if __name__ == "__main__":
    main()
