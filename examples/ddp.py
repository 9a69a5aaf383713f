"""Stage 1 on several processes, stage 2 on one: scikit-learn's digits with 30 % wrong labels.

torchrun --nproc-per-node 2 examples/ddp.py runs/ddp-log
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from gradmimic import GradMimic, ScoreLog, select

EPOCHS = 10


def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Pixels [1797, 64], true labels, and labels of which 30 % were drawn anew."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 8 - 1, torch.tensor(labels)
    chance = torch.Generator().manual_seed(0)  # the same on all ranks
    wrong = torch.rand(len(y), generator=chance) < 0.3
    other = (y + torch.randint(1, 10, (len(y),), generator=chance)) % 10
    return x, y, torch.where(wrong, other, y)


def better_model(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """A model that had 300 clean labels, from the same initial weights."""
    reference = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    reference.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(reference(x[:300]), y[:300]).backward()
        optimizer.step()
    return reference


def main(folder: Path) -> None:
    dist.init_process_group("gloo")  # nccl on GPUs
    torch.manual_seed(0)  # all ranks start from the same weights
    x, true, given = digits()
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    reference = better_model(model, x, true)

    rows = TensorDataset(x, given, torch.arange(len(x)))
    # drop_last: else the sampler repeats samples, and stage 2 expects each once an epoch
    sampler = DistributedSampler(rows, drop_last=True)
    loader = DataLoader(rows, batch_size=32, sampler=sampler)
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-3)
    with ScoreLog(folder) as log:  # every rank writes parts of its own
        mimic = GradMimic(ddp, reference, temperature="auto", log=log)
        for epoch in range(EPOCHS):
            sampler.set_epoch(epoch)
            for inputs, labels, ids in loader:
                with mimic:
                    losses = F.cross_entropy(ddp(inputs), labels, reduction="none")
                optimizer.zero_grad()
                mimic.weigh(losses, ids, epoch=epoch).backward()
                optimizer.step()

    dist.barrier()  # until all ranks have written all
    if dist.get_rank() == 0:
        removed = torch.tensor(select(folder).removed)
        wrong = given != true
        found = wrong[removed].float()
        print(
            f"{dist.get_world_size()} ranks; removed {len(removed)} of {len(x)} samples, "
            f"{found.mean():.0%} of them mislabelled: {found.sum() / wrong.sum():.0%} of all such."
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
