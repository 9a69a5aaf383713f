"""Batches of pairs: every sample once, whoever reads it, and counts that add up."""

import os
import signal

import pytest
import torch

pytest.importorskip("PIL.Image", reason="needs the extra 'images'")
pytest.importorskip("webdataset", reason="needs the extra 'webdataset'")

from hypothesis import given
from hypothesis import strategies as st
from web import Small, lengths, link, picture, sample, shard

from gradmimic.data.pairs import (
    Census,
    Duplicates,
    End,
    PairReader,
    PairSource,
    Row,
    ShardCensus,
    find_duplicates,
    open_pairs,
    reasons,
)
from gradmimic.errors import DataError


def reader(source, **options):
    options = {"batch_size": 4, "shuffle": True, "seed": 0, "workers": 0, "mixed": False} | options
    return PairReader(source, Small(), lengths, **options)


def pool(folder, counts, **meta):
    """Write clean shards of so many samples each; return them opened."""
    for number, count in enumerate(counts):
        samples = [sample(f"{i:03}", f"{number}-{i}", "a" * (i + 1)) for i in range(count)]
        shard(folder / f"{number:04}.tar", *samples)
    return open_pairs(str(folder))


def ids(batches):
    return [one for batch in batches for one in batch.ids]


def everything(counts):
    return sorted(f"{n}-{i}" for n, count in enumerate(counts) for i in range(count))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_of_one_shard_each(tmp_path, workers):
    source = pool(tmp_path, [9, 0, 4, 1])
    batches = list(reader(source, workers=workers))
    by_shard = {n: [b for b in batches if b.shard == n] for n in range(4)}
    assert [[len(b) for b in by_shard[n]] for n in range(4)] == [[4, 5], [0], [4], [1]]
    for own in by_shard.values():
        assert [b.last for b in own] == [False] * (len(own) - 1) + [True]
    assert all(one.startswith(f"{b.shard}-") for b in batches for one in b.ids)
    assert sorted(ids(batches)) == everything([9, 0, 4, 1])
    empty = by_shard[1][0]
    assert (empty.images.shape, empty.tokens["length"].shape) == ((0, 3, 8, 8), (0, 1))
    for batch in batches:
        assert batch.images.shape == (len(batch), 3, 8, 8)
        assert batch.images.dtype == torch.float32
        assert batch.tokens["length"].flatten().tolist() == [len(t) for t in batch.texts]
        assert [f"{batch.shard}-{len(t) - 1}" for t in batch.texts] == batch.ids


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (3, 0), (2, 2)])
def test_every_sample_once_over_ranks_and_workers(tmp_path, mixed, ranks, workers):
    counts = [5, 3, 7, 1, 4]
    source = pool(tmp_path, counts)
    readers = [
        reader(source, rank=rank, ranks=ranks, workers=workers, mixed=mixed)
        for rank in range(ranks)
    ]
    seen = [one for own in readers for one in ids(own)]
    assert sorted(seen) == everything(counts)
    census = Census.sum(own.census for own in readers)
    assert (census.kept, census.total, census.done) == (20, 20, set(range(5)))


def test_a_shards_batches_depend_on_nothing_else(tmp_path):
    source = pool(tmp_path, [9, 6, 8])
    alone = {b: [batch.ids for batch in reader(source, done={0, 1, 2} - {b})] for b in range(3)}
    for options in ({}, {"workers": 2}, {"rank": 1, "ranks": 2}, {"done": [0]}):
        for number, own in alone.items():
            together = [b.ids for b in reader(source, **options) if b.shard == number]
            assert together in ([], own)
    assert alone[0] != [b.ids for b in reader(source, seed=1) if b.shard == 0]
    assert alone[0] != [b.ids for b in reader(source, shuffle=False) if b.shard == 0]
    in_order = ids(b for b in reader(source, shuffle=False) if b.shard == 0)
    assert in_order == [f"0-{i}" for i in range(9)]


def test_resume_passes_over_what_is_done(tmp_path):
    source = pool(tmp_path, [5, 9, 5])
    first = reader(source)
    seen = []
    for batch in first:
        seen += batch.ids
        if batch.shard == 1:
            break
    assert first.census.done == {0}
    seen = [one for one in seen if one.startswith("0-")]
    second = reader(source, done=first.census.done)
    assert sorted(seen + ids(second)) == everything([5, 9, 5])


def test_mixed_batches_mix(tmp_path):
    source = pool(tmp_path, [40] * 5)
    own = reader(source, mixed=True, batch_size=16)
    batches = list(own)
    assert {b.shard for b in batches} == {-1}
    assert len({one.split("-")[0] for one in batches[0].ids}) > 1
    assert ids(batches) == ids(own)  # the same order again, by the seed
    assert ids(batches) != ids(reader(source, mixed=True, batch_size=16, seed=1))
    in_order = ids(reader(source, mixed=True, shuffle=False))
    assert in_order == [f"{n}-{i}" for n in range(5) for i in range(40)]


def test_the_buffer_is_bounded_by_number_and_bytes(tmp_path, monkeypatch):
    source = pool(tmp_path, [30])
    stream = "gradmimic.data.pairs.stream."
    for name, value in (("BUFFER", 3), ("BUFFER_BYTES", 3 * len(picture()))):
        monkeypatch.undo()
        monkeypatch.setattr(stream + name, value)
        order = [int(one[2:]) for one in ids(reader(source))]
        assert sorted(order) == list(range(30))
        assert order != list(range(30))
        assert all(place <= at + 4 for at, place in enumerate(order))  # none comes much too early


def test_only_some_are_asked_for(tmp_path):
    own = reader(pool(tmp_path, [4, 4]), only={"0-1", "1-3"})
    assert sorted(ids(own)) == ["0-1", "1-3"]
    assert own.census.dropped == {reasons.NOT_ASKED: 6}


DIRT = {
    "good": lambda key, uid: sample(key, uid),
    "cut picture": lambda key, uid: sample(key, uid, image=picture()[:-99]),
    "no caption": lambda key, uid: sample(key, uid, None),
    "empty": lambda key, uid: sample(key, uid, " "),
    "no uid": lambda key, uid: sample(key),
    "link": lambda key, uid: [*link(f"{key}.jpg", "/etc/passwd"), *sample(key, uid)[1:]],
    "path": lambda key, uid: sample(f"../{key}", uid),
    "stray": lambda key, uid: [(f"{key}.md", b"x")],
}


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.sampled_from(sorted(DIRT)), st.integers(0, 9)), max_size=6),
            st.floats(0.1, 1.5),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 3),
    st.booleans(),
    st.integers(1, 3),
)
def test_counts_add_up_whatever_the_dirt(tmp_path_factory, shards, ranks, mixed, batch_size):
    folder = tmp_path_factory.mktemp("dirty")
    shard(folder / "0000.tar", sample("first", "first"))  # so that there are uids
    for number, (samples, share) in enumerate(shards, 1):
        made = [DIRT[kind](f"{i}", f"u{uid}") for i, (kind, uid) in enumerate(samples)]
        path = shard(folder / f"{number:04}.tar", *made)
        shard(path, *made, cut=int(share * path.stat().st_size))
        (folder / f"{number:04}_stats.json").write_text(f'{{"successes": {len(samples)}}}')
    source = open_pairs(folder)
    skip = find_duplicates(source)
    results = []
    for n in (1, ranks):
        own = [
            reader(source, rank=r, ranks=n, mixed=mixed, skip=skip, batch_size=batch_size)
            for r in range(n)
        ]
        kept = [one for each in own for one in ids(each)]
        census = Census.sum(each.census for each in own)
        assert len(set(kept)) == len(kept) == census.kept
        assert census.kept + sum(census.dropped.values()) == census.seen
        assert census.total == census.seen + census.lost
        assert census.done == set(range(len(source)))
        for number in range(len(source)):  # nothing disappears from any shard
            *items, end = source.records(number)
            assert isinstance(end, End)
            assert census.shards[number].seen == len(items)
            total = source.expected(number)
            if census.shards[number].fault and total is not None:
                assert census.shards[number].lost == max(0, total - len(items))
        rows = census.rows()
        assert sum(row.count or 0 for row in rows[:-1]) == rows[-1].count == census.total
        assert Census.from_dict(census.to_dict()) == census
        results.append((sorted(kept), census.dropped, census.lost, census.ignored))
    assert results[0] == results[1]  # one process or several


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=3))
def test_no_damaged_byte_loses_a_sample_without_a_word(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("damaged")
    path = shard(folder / "0.tar", *(sample(f"{n}", f"u{n}") for n in range(4)))
    content = bytearray(path.read_bytes())
    last = len(content.rstrip(b"\0"))
    for place, by in changes:
        at = int(place * last)
        content[at] = (content[at] + by) % 256
    path.write_bytes(content)
    own = reader(open_pairs(folder))
    assert len(ids(own)) == own.census.kept
    assert own.census.seen == own.census.kept + sum(own.census.dropped.values())
    assert own.census.faults or own.census.seen == 4


def test_the_census_names_reasons_and_examples(tmp_path):
    shard(tmp_path / "0.tar", sample("0", "a"), sample("\x1b[2J", "b"), sample("1", "c", ""))
    shard(tmp_path / "1.tar", sample("2", "d", ""), sample("3", "e"), sample("4", "f"), cut=1_500)
    (tmp_path / "1_stats.json").write_text('{"successes": 3}')
    own = reader(open_pairs(str(tmp_path / "{0..2}.tar")))
    list(own)
    *rows, total = own.census.rows()
    assert rows[0] == Row("kept", 1)
    assert Row("the caption is empty", 1, "0: 1") in rows
    assert Row("an unsafe name in the archive", 1, "0: \\x1b[2J") in rows
    assert Row("the shard is cut short or damaged (1 of 3)", 2, "1: unexpected end of data") in rows
    missing = rows[-1]
    assert missing.what == "the shard cannot be opened (1 of 3)"
    assert missing.count is None
    assert "2.tar" in missing.example
    assert total == Row("total", 6)
    assert own.census.unknown == ["2"]


def test_a_census_adds_up_in_any_order():
    one = Census({0: ShardCensus("a", 2, 1, {"x": 1}, {"x": "k"})})
    two = Census({0: ShardCensus("a", 1, 0, {"x": 1}, {"x": "l"}, ended=True), 1: ShardCensus("b")})
    both = one + two
    assert (both.seen, both.kept, both.dropped) == (3, 1, {"x": 2})
    assert (both.example("x"), both.done) == ("a: k", {0, 1} - {1})
    assert one.shards[0].seen == 2  # unchanged
    assert Census.sum([two, one]).dropped == both.dropped


def test_duplicates_across_shards(tmp_path):
    shard(tmp_path / "0.tar", sample("0", "a"), sample("1", "b"), sample("2", "b"))
    shard(tmp_path / "1.tar", sample("0", "c"), sample("1", "a"))
    shard(tmp_path / "2.tar", sample("0", "c"), sample("1", "a"), sample("2", "d"))
    source = open_pairs(tmp_path)
    found = find_duplicates(source)
    assert len(found) == 2
    found.save(tmp_path / "found.npy")
    for skip in (found, Duplicates.load(tmp_path / "found.npy")):
        for done, kept in (([], "abcd"), ([0], "cd"), ([1], "abd")):  # the data alone decide
            own = reader(source, skip=skip, done=done)
            assert sorted(ids(own)) == list(kept)
        dropped = {reasons.ELSEWHERE: 2, reasons.REPEATED: 1}
        assert own.census.dropped == dropped
    (tmp_path / "found.npy").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"cannot read .*found.npy: .* Delete it to have it made"):
        Duplicates.load(tmp_path / "found.npy")


class Listed(PairSource):
    """Ids alone."""

    def __init__(self, ids):
        self.name, self._ids, self.shards = "listed", ids, [str(n) for n in range(len(ids))]

    def items(self, shard):
        raise NotImplementedError

    def ids(self, shard):
        yield from self._ids[shard]


@given(st.lists(st.lists(st.integers(0, 60).map(str), max_size=30), min_size=1, max_size=6))
def test_the_first_shard_in_order_keeps_an_id(shards):
    found = find_duplicates(Listed(shards))
    first = {}
    for number, own in enumerate(shards):
        for one in own:
            first.setdefault(one, number)
    for number in range(len(shards)):
        for one in map(str, range(70)):
            assert found.elsewhere(one, number) == (
                first.get(one, 9) < number and sum(one in own for own in shards) > 1
            )


def test_made_ids_have_no_duplicates(tmp_path):
    for n in range(2):
        shard(tmp_path / f"{n}.tar", sample("0"), sample("1"))
    assert len(find_duplicates(open_pairs(tmp_path))) == 0


class Fails(Small):
    def __call__(self, image):
        if image.width == 10:
            raise ZeroDivisionError
        return super().__call__(image)


def test_a_transform_that_fails_on_one_picture(tmp_path):
    odd = sample("1", "u1", image=picture(size=(10, 20)))
    source = open_pairs(shard(tmp_path / "0.tar", sample("0", "u0"), odd))
    own = PairReader(
        source, Fails(), lengths, batch_size=4, shuffle=False, seed=0, workers=0, mixed=True
    )
    assert ids(own) == ["u0"]
    assert own.census.dropped == {reasons.UNPREPARED: 1}


class Dies(Small):
    def __call__(self, image):
        if image.width == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(image)


def test_a_worker_that_is_killed_is_told_of(tmp_path):
    odd = sample("1", "u1", image=picture(size=(10, 20)))
    source = open_pairs(shard(tmp_path / "0.tar", sample("0", "u0"), odd))
    own = PairReader(
        source, Dies(), lengths, batch_size=4, shuffle=False, seed=0, workers=1, mixed=True
    )
    with pytest.raises(DataError, match=r"a process that reads pairs has ended, perhaps for want"):
        list(own)


def test_workers_end_with_the_loop(tmp_path):
    import psutil

    before = set(psutil.Process().children())
    for _ in reader(pool(tmp_path, [8] * 4), workers=2):
        break
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": -1}, {"rank": 2, "ranks": 2}])
def test_impossible_shares(tmp_path, options):
    with pytest.raises(DataError, match="a rank below the number of ranks; got batch_size="):
        reader(pool(tmp_path, [1]), **options)
