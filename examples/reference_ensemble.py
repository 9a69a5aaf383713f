"""An ensemble fitted to the noisy labels themselves as the reference: not one label is checked.

python examples/reference_ensemble.py [SEED]

Randomised trees and nearest neighbours, cross-validated: each sample is judged by models that never
saw it, so none has learned its wrong label by heart.
"""

import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn.functional import cross_entropy

from gradmimic import GradMimic
from gradmimic.data import symmetric
from gradmimic.outputs import Outputs

MEMBERS = ExtraTreesClassifier(100, min_samples_leaf=3, random_state=0), KNeighborsClassifier(25)


def main(seed: int = 0, noise: float = 0.5, epochs: int = 30) -> None:
    torch.set_num_threads(1)
    pixels, digits = load_digits(return_X_y=True)  # [1797, 64] from 0 to 16
    rows, test = np.split(np.random.default_rng(seed).permutation(len(digits)), [1397])
    given = symmetric(digits[rows], noise, 10, seed)  # half of these labels are wrong

    judge = {"cv": 5, "method": "predict_proba"}
    p = np.mean([cross_val_predict(m, pixels[rows], given, **judge) for m in MEMBERS], axis=0)
    outputs = Outputs(rows, p, kind="probabilities", source="trees and neighbours")

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

    fitted = [member.fit(pixels[rows], given) for member in MEMBERS]  # to all rows, for the test
    said = sum(member.predict_proba(pixels[test]) for member in fitted).argmax(1)
    print(f"accuracy of the ensemble     {np.mean(said == digits[test]):.3f}")
    print(f"accuracy of plain training   {accuracy['plain']:.3f}")
    print(f"accuracy when re-weighted    {accuracy['re-weighted']:.3f}")
    auroc = roc_auc_score(given != digits[rows], -total[rows].numpy())
    print(f"AUROC of finding bad labels  {auroc:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
