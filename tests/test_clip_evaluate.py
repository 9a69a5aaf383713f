"""Retrieval and zero-shot accuracy, against slow calculations of their own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from gradmimic.run.clip import evaluate
from gradmimic.run.clip.evaluate import KS, class_embeddings, retrieval, zero_shot_accuracy


def slow_recall(queries, answers, right, k):
    """Sort the answers of each query, the wrong ones first where they are equally similar."""
    found = []
    for i, query in enumerate(queries):
        ranked = sorted(
            range(len(answers)), key=lambda j: (-float(query @ answers[j]), right(i, j))
        )
        found.append(any(right(i, j) for j in ranked[:k]))
    return np.mean(found)


@given(
    n=st.integers(1, 14), most=st.integers(1, 4), seed=st.integers(0, 99), block=st.integers(1, 60)
)
def test_recall_is_what_sorting_says(n, most, seed, block):
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(n), rng.integers(1, most + 1, n))
    rng.shuffle(owner)
    # few distinct whole numbers, so that there are ties, and exactly
    images = torch.tensor(rng.integers(-2, 3, (n, 3)), dtype=torch.float64)
    texts = torch.tensor(rng.integers(-2, 3, (len(owner), 3)), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "_BLOCK", block)
        found = retrieval(images, texts, torch.tensor(owner))
    for k in KS:
        by_image = slow_recall(images, texts, lambda i, j: owner[j] == i, k)
        by_text = slow_recall(texts, images, lambda i, j: owner[i] == j, k)
        assert found.image_to_text[k] == pytest.approx(by_image)
        assert found.text_to_image[k] == pytest.approx(by_text)


def test_a_model_that_says_the_same_of_everything_finds_nothing():
    same = torch.ones(30, 4)
    found = retrieval(same, same, torch.arange(30))
    assert found.image_to_text == found.text_to_image == {1: 0.0, 5: 0.0, 10: 0.0}


def test_classes_are_means_of_their_sentences():
    table = {
        "a cat": torch.tensor([1.0, 0.0]),
        "the cat": torch.tensor([0.6, 0.8]),
        "a big dog": torch.tensor([0.0, 1.0]),
        "the big dog": torch.tensor([0.0, -1.0]),
    }
    embed = lambda texts: torch.stack([table[text] for text in texts])
    cat = class_embeddings(embed, ["cat"], ["a {}", "the {}"])[0]
    assert torch.allclose(cat, torch.tensor([0.8, 0.4]) / np.sqrt(0.8))
    dog = class_embeddings(embed, ["big_dog"], ["a {}"])[0]
    assert torch.equal(dog, torch.tensor([0.0, 1.0]))


def test_a_class_with_braces_of_its_own_is_not_a_template():
    seen = []
    class_embeddings(lambda texts: seen.extend(texts) or torch.ones(1, 2), ["{0} {x}"], ["a {}"])
    assert seen == ["a {0} {x}"]


@pytest.mark.parametrize("n", [1, 5000])
def test_zero_shot_accuracy_is_the_share_of_nearest_classes(n):
    generator = torch.Generator().manual_seed(n)
    images = F.normalize(torch.randn(n, 5, generator=generator), dim=1)
    classes = F.normalize(torch.randn(7, 5, generator=generator), dim=1)
    labels = torch.randint(7, (n,), generator=generator)
    right = 0
    for u, y in zip(images, labels, strict=True):
        right += max(range(7), key=lambda c: float(u @ classes[c])) == int(y)
    assert zero_shot_accuracy(images, labels, classes) == right / n
