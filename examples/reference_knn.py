"""Nearest neighbours among 200 checked samples as the reference of a network on noisy labels.

python examples/reference_knn.py [SEED]

Neighbours have no weights that θ_ref − θ could be taken of; their outputs are enough.
"""

import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn.functional import cross_entropy

from gradmimic import GradMimic
from gradmimic.data import symmetric
from gradmimic.outputs import Outputs


def main(seed: int = 0, noise: float = 0.6, epochs: int = 30) -> None:
    torch.set_num_threads(1)
    pixels, digits = load_digits(return_X_y=True)  # [1797, 64] from 0 to 16
    order = np.random.default_rng(seed).permutation(len(digits))
    trusted, test, rows = np.split(order, [200, 600])  # the rest is trained on
    given = symmetric(digits[rows], noise, 10, seed)  # 60 % of these labels are wrong

    neighbours = KNeighborsClassifier(10, weights="distance").fit(pixels[trusted], digits[trusted])
    p = neighbours.predict_proba(pixels[rows])  # [n, 10]
    p = 0.9 * p + 0.1 / 10  # ten neighbours cannot tell 0 from a little
    outputs = Outputs(rows, p, kind="probabilities", source="10 nearest neighbours")

    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
    y[rows] = torch.tensor(given)
    accuracy, total = {}, torch.zeros(len(x))
    for name, temperature in (("plain", float("inf")), ("re-weighted", "auto")):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        mimic = GradMimic(model, outputs, align="outputs", temperature=temperature)
        for _ in range(epochs):
            for batch in torch.tensor(rows)[torch.randperm(len(rows))].split(32):
                with mimic:
                    losses = cross_entropy(model(x[batch]), y[batch], reduction="none")
                loss = mimic.weigh(losses, batch)
                if name == "re-weighted":
                    total[batch] += mimic.scores
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            right = model(x[test]).argmax(1) == torch.tensor(digits[test])
        accuracy[name] = right.float().mean()

    print(f"accuracy of the neighbours   {neighbours.score(pixels[test], digits[test]):.3f}")
    print(f"accuracy of plain training   {accuracy['plain']:.3f}")
    print(f"accuracy when re-weighted    {accuracy['re-weighted']:.3f}")
    auroc = roc_auc_score(given != digits[rows], -total[rows].numpy())
    print(f"AUROC of finding bad labels  {auroc:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
