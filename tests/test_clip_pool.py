"""Every pair once an epoch, in batches of nearly one size, in an order that the seed fixes."""

from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradmimic.data.pairs.batch import PairBatch
from gradmimic.run.clip import pool
from gradmimic.run.clip.pool import Held, Streamed, Wanted, parts, rebatched, seed_of

LONG = 3  # tokens of some captions


def tokenize(texts):
    longest = max((len(text.split()) for text in texts), default=0)
    tokens = torch.zeros(len(texts), longest, dtype=torch.int64)
    for row, text in enumerate(texts):
        words = [int(word) for word in text.split()]
        tokens[row, : len(words)] = torch.tensor(words, dtype=torch.int64)
    return {"words": tokens}


def caption(number):
    return " ".join([str(number + 1)] * (1 + number % LONG))


def batch(numbers, shard=-1):
    texts = [caption(number) for number in numbers]
    images = torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    return PairBatch(images, tokenize(texts), [str(n) for n in numbers], texts, shard)


def held(n, size, seed=0):
    whole = batch(list(range(n)))
    captions = [(text,) for text in whole.texts]
    return Held(whole.images, captions, whole.ids, tokenize, size, seed)


def check(batches, size):
    """Check that a batch's parts belong together; return all ids in order."""
    ids = []
    for own in batches:
        assert 2 <= len(own) <= max(size, 3)
        for place, sample_id in enumerate(own.ids):
            number = int(sample_id)
            assert own.images[place].eq(number).all()
            assert own.texts[place] == caption(number)
            words = own.tokens["words"][place].tolist()
            assert words[: 1 + number % LONG] == [number + 1] * (1 + number % LONG)
            assert not any(words[1 + number % LONG :])
        ids += own.ids
    return ids


def all_batches(data, epoch):
    return [own for _, batches in data.rounds(epoch) for own in batches]


@given(n=st.integers(4, 60), size=st.integers(2, 9), seed=st.integers(0, 5))
def test_held_pairs_come_once_an_epoch(n, size, seed):
    data = held(n, size, seed)
    first, again, second = (all_batches(data, epoch) for epoch in (0, 0, 1))
    sizes = [len(own) for own in first]
    assert len(sizes) == data.steps(0) == (n // 2 if size == 2 else ceil(n / size))
    assert max(sizes) - min(sizes) <= 1
    ids = [check(some, size) for some in (first, again, second)]
    assert sorted(ids[0], key=int) == sorted(ids[2], key=int) == [str(n) for n in range(n)]
    assert ids[0] == ids[1]


def test_epochs_and_seeds_differ():
    orders = {
        tuple(check(all_batches(held(40, 8, seed), epoch), 8))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    size=st.integers(2, 9),
    most=st.integers(1, 60),
    epoch=st.integers(0, 3),
)
def test_streamed_pairs_come_once_an_epoch(counts, size, most, epoch):
    starts = [sum(counts[:shard]) for shard in range(len(counts))]
    left_out = {str(start) for start, count in zip(starts, counts, strict=True) if count > 1}

    def open_shards(shards, seed, wanted):
        numbers = [starts[shard] + k for shard in shards for k in range(counts[shard])]
        chosen = [n for n in numbers if str(n) in wanted]
        for start in range(0, len(chosen), 7):
            yield batch(chosen[start : start + 7])

    trained = {shard: count - (count > 1) for shard, count in enumerate(counts)}
    data = Streamed(open_shards, trained, tokenize, size, 0, Wanted(left_out))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "ROUND", most)
        rounds = [[*batches] for _, batches in data.rounds(epoch)]
        steps = data.steps(epoch)
        assert data._groups(epoch) == data._groups(epoch)
    total = sum(trained.values())
    found = [sample_id for batches in rounds for sample_id in check(batches, size)]
    assert len(found) == len(set(found))
    assert left_out.isdisjoint(found)
    assert len(found) == (0 if total == 1 else total)  # one alone has no rival
    assert steps == sum(len(batches) for batches in rounds)


@given(sizes=st.lists(st.integers(0, 12), max_size=9), size=st.integers(2, 7))
def test_batches_are_filled_up(sizes, size):
    numbers = iter(range(sum(sizes)))
    batches = [batch([next(numbers) for _ in range(own)]) for own in sizes]
    filled = [*rebatched(batches, size, tokenize)]
    n = sum(sizes)
    ids = check(filled, size)
    assert ids == ([] if n == 1 else [str(number) for number in range(n)])
    assert len(filled) == parts(n, size)
    assert not filled or min(len(own) for own in filled) >= min(size // 2, n)


def test_a_caption_is_drawn_for_each_visit():
    whole = batch(list(range(12)))
    captions = [[caption(n)] if n % 2 else [caption(n), caption(n + 12)] for n in range(12)]
    data = Held(whole.images, captions, whole.ids, tokenize, 4, seed=0)
    seen = {sample_id: set() for sample_id in whole.ids}
    for epoch in range(20):
        for own in all_batches(data, epoch):
            for place, (sample_id, text) in enumerate(zip(own.ids, own.texts, strict=True)):
                words = [int(word) for word in text.split()]
                assert own.tokens["words"][place].tolist()[: len(words)] == words
                assert not any(own.tokens["words"][place].tolist()[len(words) :])
                seen[sample_id].add(text)
    assert all(seen[str(n)] == set(captions[n]) for n in range(12))
    texts = [[own.texts for own in all_batches(data, 3)] for _ in range(2)]
    assert texts[0] == texts[1]
    assert data.batch(torch.arange(12)).texts == [own[0] for own in captions]


def test_only_the_kept_pairs():
    data = held(20, 4).only({"3", "4", "17", "99"})
    assert data.ids == ["3", "4", "17"]
    assert sorted(check(all_batches(data, 0), 4)) == ["17", "3", "4"]
    wanted = Streamed(lambda *_: [], {0: 3}, tokenize, 2, 0, Wanted({"4"})).only({"3", "4"}).wanted
    assert ["3" in wanted, "4" in wanted, "5" in wanted] == [True, False, False]


def test_seeds_of_several_numbers_differ():
    seeds = {seed_of(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125
    assert seed_of(0) != seed_of(0, 0)
