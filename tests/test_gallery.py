"""What a gallery's columns hold, against plain sorting."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("jinja2", reason="needs the extra 'report'")
pytest.importorskip("PIL", reason="needs the extra 'images'")

from galleries import CLASSES, encoded, labelled
from selections import make

from gradmimic.report import gallery as module
from gradmimic.report.gallery import Gallery, arrange, gallery_values


def columns(gallery):
    """The columns as the page's script reads them."""
    text = str(gallery_values(gallery)["data"])
    start, end = text.index(">") + 1, text.index("</script>")
    assert not set(text[start:end]) & set("<>&")
    return json.loads(text[start:end])


@given(st.data())
def test_ends_and_border_are_those_of_plain_sorting(data):
    n = data.draw(st.integers(0, 30))
    end, most = data.draw(st.integers(1, 12)), data.draw(st.integers(5, 40))
    few = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0])  # so that there are ties
    scores = data.draw(st.lists(few, min_size=n, max_size=n))
    threshold = data.draw(st.sampled_from([None, 0.0, 0.25]))
    keep = [score >= (threshold or 0.0) for score in scores]
    table = make([f"{row:02}" for row in range(n)], keep, scores).table
    arranged = arrange(table, threshold, end=end, most=most)

    ranked = sorted(range(n), key=lambda row: (scores[row], row))
    judged = any(keep) and not all(keep)
    border = 0.5 if threshold is None else threshold
    value = (lambda row: float(keep[row])) if threshold is None else scores.__getitem__
    places = range(n) if judged else []
    nearest = sorted(places, key=lambda place: (abs(value(ranked[place]) - border), place))
    shown = list(range(n))
    if n > most:
        side = 2 * most // 5
        outer = {*range(side), *range(n - side, n)}
        inner = [at for at in nearest if at not in outer][: most - 2 * side]
        shown = sorted(outer | set(inner))
    ids = arranged.table["sample_id"].to_pylist()
    assert ids == [f"{ranked[at]:02}" for at in shown]
    assert arranged.total == n

    def at(name):
        return [shown[row] for row in arranged.ends[name].tolist()]

    half = min(end, (len(shown) + 1) // 2)
    if n <= most or half <= 2 * most // 5:
        assert at("lowest") == list(range(half))
        assert at("highest") == list(range(n - 1, n - 1 - half, -1))
    assert at("borderline") == [place for place in nearest if place in shown][:end]
    assert sorted(arranged.wanted) == sorted(
        {row for rows in arranged.ends.values() for row in rows}
    )


def test_pictures_are_wanted_in_turns_from_each_end():
    arranged = labelled(9, end=3).arranged
    lowest, borderline, highest = (arranged.ends[name].tolist() for name in arranged.ends)
    turns = [lowest[0], borderline[0], highest[0], lowest[1], borderline[1], highest[1]]
    assert arranged.wanted[:6] == list(dict.fromkeys(turns))[:6]


def test_the_columns_are_the_rows(monkeypatch):
    gallery = labelled(40, facts={"CLIP score": {3: 0.12345}})
    shown, table = columns(gallery), gallery.arranged.table
    assert shown["ids"] == table["sample_id"].to_pylist()
    assert shown["score"] == pytest.approx(table["score"].to_pylist(), rel=1e-4)
    assert [bit == "1" for bit in shown["keep"]] == table["keep"].to_pylist()
    reasons = [shown["reasons"][place] for place in shown["reason"]]
    assert reasons == table["reason"].to_pylist()
    assert [bit == "1" for bit in shown["bad"]] == (gallery.true != gallery.given).tolist()
    assert [CLASSES[place] for place in shown["given"]] == [CLASSES[c] for c in gallery.given]
    assert shown["texts"] == {str(row): f"text of row {row}" for row in range(40)}
    assert shown["facts"] == {"CLIP score": {"3": 0.123}}
    assert shown["pictures"] == {}
    assert gallery_values(gallery)["notes"] == []


def test_integers_beyond_two_to_the_53_stay_exact():
    known = [-(2**63), 2**53 + 1, 2**63 - 1]
    shown = columns(Gallery("run", "log", arrange(make(known, [True] * 3).table, None)))
    assert shown["ids"] == [str(one) for one in known]
    assert shown["integers"] is True
    assert columns(labelled(3))["integers"] is False


def test_bytes_are_limited_and_the_page_says_so(monkeypatch):
    monkeypatch.setattr(module, "TEXT_BYTES", 10 * len("text of row 0"))
    picture = encoded((200, 0, 0))
    gallery = labelled(40, end=4, image=lambda row: picture)
    size = len(module.data_uri(picture))
    monkeypatch.setattr(module, "PICTURE_BYTES", 5 * size + 1)
    shown = columns(gallery)
    wanted = gallery.arranged.wanted
    assert set(shown["pictures"]) == {str(row) for row in wanted[:5]}
    lengths = np.cumsum([len(f"text of row {row}") for row in wanted])
    assert set(shown["texts"]) == {str(row) for row in np.array(wanted)[lengths <= 130]}
    notes = gallery_values(gallery)["notes"]
    assert notes[0].startswith(
        "The pictures of 5 of 40 samples are on this page, those at the ends"
    )
    assert notes[1].startswith(f"The texts of {len(shown['texts'])} of 40 samples")


def test_a_page_of_too_many_samples_says_so(monkeypatch):
    chance = np.random.default_rng(0)
    scores = chance.normal(size=50)
    table = make(list(range(50)), (scores > 0).tolist(), scores).table
    gallery = Gallery("run", "log", arrange(table, float(scores[scores > 0].min()), most=20))
    (note,) = gallery_values(gallery)["notes"]
    assert note.startswith("20 of 50 samples are on this page: the lowest, the highest, and those")


def test_what_cannot_be_decoded_is_empty_and_what_is_gone_is_left_out():
    contents = {0: b"<svg/>", 1: encoded((0, 0, 9)), 2: None}
    gallery = labelled(3, image=contents.__getitem__, text=lambda row: None)
    shown = columns(gallery)
    assert shown["pictures"]["0"] == ""
    assert shown["pictures"]["1"].startswith("data:image/png;base64,")
    assert set(shown["pictures"]) == {"0", "1"}
    assert shown["texts"] == {}


def test_the_table_without_scripts_names_everything():
    gallery = labelled(60)
    shown = gallery_values(gallery)
    assert shown["head"] == ["id", "given", "suggested", "true", "score", "decision"]
    assert len(shown["plain"]) == 50
    first = gallery.arranged.table["sample_id"][0].as_py()
    named = [CLASSES[column[0]] for column in (gallery.given, gallery.suggested, gallery.true)]
    assert shown["plain"][0] == [first, *named, "−1", "removed: so"]


def test_samples_without_a_probability_and_selections_of_one_kind():
    from gradmimic.curate import Selection

    selection = Selection.from_scores(["a", "b", "c"], [0.5, 0.1, 0.9])
    gallery = Gallery("run", "log", arrange(selection.table, None))
    assert columns(gallery)["p"] == [None, None, None]
    assert gallery.arranged.ends["borderline"].tolist() == []
    decided = arrange(
        selection.above(0.4).table, None
    )  # no score divides by p_clean: there is none
    assert decided.ends["borderline"].tolist() == []
    nothing = arrange(make([], []).table, None)
    assert {name: rows.tolist() for name, rows in nothing.ends.items()} == {
        "lowest": [], "borderline": [], "highest": [],
    }  # fmt: skip
    assert columns(Gallery("run", "log", nothing))["ids"] == []
