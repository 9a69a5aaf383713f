"""Run by test_secant.py, once in each process: scores of a sharded model on this rank's half."""

import os

import torch
import torch.distributed as dist
import zoo
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from gradmimic import GradMimic, mimic_scores


def main():
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    losses = zoo.losses_of("cross-entropy")
    model, reference = zoo.build("cnn-groupnorm", 4)
    batch = zoo.draw("cnn", 8).take(slice(4 * rank, 4 * rank + 4))
    expected = mimic_scores(model, reference, batch, losses, params="all", engine="oracle")
    fully_shard(model[5], mesh=mesh)
    fully_shard(model, mesh=mesh)
    better = {
        name: distribute_tensor(p.detach(), mesh, model.get_parameter(name).placements)
        for name, p in reference.named_parameters()
    }
    before = [p.to_local().clone() for p in model.parameters()]
    for given in (better, reference):
        mimic = GradMimic(model, given, params="all", engine="secant")
        for _ in range(2):
            with mimic:
                values = losses(model, batch)
            mimic.weigh(values).backward()
            torch.testing.assert_close(mimic.scores, expected, rtol=1e-4, atol=1e-5)
    assert all(
        torch.equal(p.to_local(), b) for p, b in zip(model.parameters(), before, strict=True)
    )
    assert all(p.grad is not None for p in model.parameters())
    dist.destroy_process_group()
    # gloo's threads under FSDP2 now and then abort the interpreter's own end, when all is done
    os._exit(0)


if __name__ == "__main__":
    main()
