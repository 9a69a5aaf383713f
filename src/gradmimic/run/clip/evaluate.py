"""How well a contrastive model retrieves, and how well it classifies without being trained to.

    R@k         the share of queries of which a right answer is among the k most similar
                image → text: any of the image's captions;  text → image: the caption's image
    zero-shot   ĉ_i = argmax_c ⟨u_i, v_c⟩,  v_c = mean over templates t of v(t(c)), to unit length

Among equally similar answers the right ones come last, so that a model that says the same of
everything finds nothing. Similarities are formed block by block: never n × m numbers at once.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

KS = (1, 5, 10)
TEMPLATES = (
    "a photograph of a {}.",
    "a picture that shows a {}.",
    "a close view of a {}.",
    "one {} among other things.",
    "a {}, seen outdoors or indoors.",
)
_BLOCK = 2**24  # similarities at once


class Recall(NamedTuple):
    """R@1, R@5 and R@10 of both directions, each in [0, 1], higher is better."""

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]

    @property
    def mean_at_10(self) -> float:
        """R@10, averaged over the directions."""
        return (self.image_to_text[10] + self.text_to_image[10]) / 2


@torch.no_grad()
def retrieval(images: Tensor, texts: Tensor, owner: Tensor) -> Recall:
    """Measure R@1, R@5 and R@10 in both directions.

    Args:
        images: ``[n, e]``, of unit length.
        texts: ``[m, e]``, of unit length.
        owner: ``[m]`` int64, the row of the picture that each caption is of; every picture has one.

    Returns:
        Shares of queries. With n answers a random model comes to k/n.

    Example:
        >>> u = torch.eye(20)
        >>> retrieval(u, u, torch.arange(20)).mean_at_10
        1.0
        >>> retrieval(u, u.roll(1, 0), torch.arange(20)).image_to_text[1]
        0.0
    """
    n, m = len(images), len(texts)
    rows = torch.arange(n, device=owner.device)
    ahead_of_text = []  # [n], how many wrong captions are before the first right one
    for block in rows.split(max(1, _BLOCK // m)):
        s = images[block] @ texts.T  # [B, m]
        right = owner[None] == block[:, None]  # [B, m]
        best = s.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        ahead_of_text.append(((s >= best) & ~right).sum(1))
    ahead_of_image = []  # [m], how many other pictures are before the caption's own
    for block in torch.arange(m, device=owner.device).split(max(1, _BLOCK // n)):
        s = texts[block] @ images.T  # [B, n]
        own = s.gather(1, owner[block, None])
        ahead_of_image.append((s >= own).sum(1) - 1)
    return Recall(_shares(torch.cat(ahead_of_text)), _shares(torch.cat(ahead_of_image)))


@torch.no_grad()
def class_embeddings(
    embed: Callable[[Sequence[str]], Tensor], classes: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Embed each class as the mean of what the model says of its sentences.

    v_c = mean_t v(t(c)) / ‖mean_t v(t(c))‖

    Args:
        embed: captions -> ``[b, e]`` of unit length.
        classes: their names; underscores stand for blanks.
        templates: sentences with ``{}`` for the class.

    Returns:
        ``[c, e]``, of unit length.

    Example:
        >>> class_embeddings(lambda texts: torch.eye(2)[: len(texts)], ["cat"], ["a {}", "the {}"])
        tensor([[0.7071, 0.7071]])
    """
    means = [
        embed([template.replace("{}", name.replace("_", " ")) for template in templates]).mean(0)
        for name in classes
    ]
    return F.normalize(torch.stack(means), dim=1)


@torch.no_grad()
def zero_shot_accuracy(images: Tensor, labels: Tensor, classes: Tensor) -> float:
    """Return the share of pictures that are most similar to their own class.

    Args:
        images: ``[n, e]``, of unit length.
        labels: ``[n]`` int64, rows of ``classes``.
        classes: ``[c, e]``, from :func:`class_embeddings`.

    Returns:
        In [0, 1], higher is better; 1/c is chance where the classes are of one size.

    Example:
        >>> zero_shot_accuracy(torch.eye(3), torch.tensor([0, 1, 1]), torch.eye(3)) == 2 / 3
        True
    """
    right = sum(
        int(((u @ classes.T).argmax(1) == y).sum())
        for u, y in zip(images.split(4096), labels.split(4096), strict=True)
    )
    return right / len(labels)


def _shares(ahead: Tensor) -> dict[int, float]:
    return {k: float((ahead < k).double().mean()) for k in KS}
