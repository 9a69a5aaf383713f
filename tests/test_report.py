import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="needs the extra 'report'")
pytest.importorskip("altair", reason="needs the extra 'report'")
pytest.importorskip("vl_convert", reason="needs the extra 'report'")
Image = pytest.importorskip("PIL.Image", reason="needs the extra 'images'")

from gradmimic.report import Frame, Metric, render_report, write_report  # noqa: E402
from gradmimic.report.charts.classes import class_chart, confusion_chart  # noqa: E402
from gradmimic.report.charts.curves import curve_chart  # noqa: E402
from gradmimic.report.charts.histogram import score_chart  # noqa: E402
from gradmimic.report.charts.threshold import thresholds  # noqa: E402
from gradmimic.report.grids import Grid  # noqa: E402
from gradmimic.report.inline import json_block, policy  # noqa: E402
from gradmimic.report.numbers import Interval  # noqa: E402
from gradmimic.report.pictures import data_uri  # noqa: E402

EVIL = "<script>alert(1)</script>\"'{{ 7 * 7 }}"
CLOSING = "</script><img src=x onerror=alert(1)><!--"


def picture(kind="PNG", size=(8, 6), **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(buffer, kind, **options)
    return buffer.getvalue()


def charts(*names):
    """Every kind of chart, with these names of classes."""
    rng = np.random.default_rng(0)
    scores = np.r_[rng.normal(1, 0.2, 80), rng.normal(-1, 0.2, 20)]
    moved = thresholds(scores, own=None, removed=20, p_clean=scores > 0, wrong=scores < 0)
    names = names or ("cat", "dog")
    return [
        score_chart(scores, rng.normal(-1, 0.5, 30), thresholds=moved),
        curve_chart({"plain": {0: 0.6, 1: 0.7}}, "accuracy", "Higher is better.", 0.75),
        class_chart({name: Interval(0.1, 0.0, 0.2) for name in names}),
        confusion_chart(names, np.array([0, 1]), np.array([1, 0]), np.ones(2, bool)),
        None,  # nothing to show
    ]


def example(**changes):
    parts = {
        "title": "digits",
        "verdict": "It went well.",
        "tiles": [("plain", "71.4 %", "test accuracy")],
        "notes": ["look out"],
        "charts": charts(),
        "grids": [Grid("Read", "adds up", ["", "rows", "first"], [["kept", "9", "00: 07"]])],
        "metrics": [Metric("F1", 0.91, "0 … 1"), Metric("accuracy", 0.5, percent=True)],
        "config": {"epochs": 2, "seeds": [0, 1], "noise": None},
        "versions": {"gradmimic": "0.1.0"},
    }
    return Frame(**{**parts, **changes})


class Tags(HTMLParser):
    """Collect the tags of a page, what its attributes point to, its scripts and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.targets, self.handlers, self.text = [], [], [], ""
        self.scripts, self.data = [], []  # what runs, and what does not
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.targets += [value for name, value in attrs if name in {"src", "href", "xlink:href"}]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag == "script":
            kind = self.data if ("type", "application/json") in attrs else self.scripts
            kind.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            at = self.data if self.data and self.rawdata_is_json() else self.scripts
            at[-1] += data
        elif self.cdata_elem is None:
            self.text += f"{data} "

    def rawdata_is_json(self):
        return 'type="application/json"' in self.get_starttag_text()


def data_in(html, element_id):
    """Read the data that a page holds for its scripts."""
    found = re.findall(f'<script type="application/json" id="{element_id}">(.*?)</script>', html)
    assert len(found) == 1
    return json.loads(found[0])


def check_safe(html):
    """See that a page runs its own scripts and nothing else, and asks for nothing."""
    page = Tags(html)
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in page.scripts
    ]
    own = f" script-src {' '.join(hashes)};" if hashes else ""
    allowed = f"default-src 'none';{own} style-src 'unsafe-inline'; img-src data:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{allowed}">' in html
    assert page.handlers == []
    assert all(target.startswith(("data:image/", "#")) for target in page.targets)
    assert not {"link", "iframe", "object", "base", "form"} & set(page.tags)
    styles = " ".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
    assert re.findall(r"url\(|@import", styles) == []
    ids = re.findall(r'\bid="([^"]+)"', re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL))
    assert len(ids) == len(set(ids))
    return page


def test_everything_from_data_is_escaped():
    html = render_report(
        Frame(
            EVIL, EVIL, [(EVIL, EVIL, EVIL)], [EVIL], charts(EVIL, CLOSING), None,
            [Grid(EVIL, EVIL, [EVIL, EVIL], [[EVIL, EVIL]])], [Metric(EVIL, EVIL, EVIL)],
            {EVIL: EVIL}, {EVIL: EVIL},
        )
    )  # fmt: skip
    page = check_safe(html)
    assert "<script>alert" not in html
    assert "<img" not in html.replace(page.scripts[0], "")  # Vega makes pictures, of none here
    assert len(page.scripts) == 2
    assert page.text.count("<script>alert(1)</script>") >= 20
    assert "{{ 7 * 7 }}" in page.text
    assert CLOSING in page.text  # in the tables of numbers
    assert any("\\u003c/script\\u003e\\u003cimg" in data for data in page.data)


def test_data_within_a_page_cannot_end_their_element():
    block = json_block("x", {CLOSING: [EVIL, "\u2028 & ü", 0.1]})
    page = Tags(f"<p>{block}</p>")
    assert page.tags == ["p", "script"]
    assert "<" not in page.data[0]
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            json_block("x", [bad])


def test_the_page_needs_nothing_else():
    page = check_safe(render_report(example()))
    assert len(page.scripts) == 2
    assert "vegaEmbed" in page.scripts[0]
    assert page.scripts[1].startswith('"use strict";')
    bare = check_safe(render_report(example(charts=[])))
    assert bare.scripts == []


def test_no_script_may_run_that_the_page_does_not_hold():
    assert "script-src" not in policy([])
    for word in ("unsafe-eval", "script-src 'unsafe", "nonce", "http"):
        assert word not in policy(["let a;"])


def test_the_numbers_are_on_the_page_without_scripts():
    html = render_report(example())
    text = " ".join(Tags(html).text.split())
    for words in (
        "digits It went well. plain 71.4 % test accuracy look out",
        "Their numbers stand in the table below each.",
        "removes 20 of 100 samples (20.0 %). Expected to be bad: 20 of these (100.0 %), 0 of those",
        "epoch plain reference 0 60.0 % 75.0 % 1 70.0 % 75.0 %",
        "class estimated at least at most cat 10.0 % 0.0 % 20.0 %",
        "given suggested samples cat dog 1 dog cat 1",
        "Read adds up rows first kept 9 00: 07",
        "F1 0.91 0 … 1 accuracy 50.0 %",
        "epochs 2 seeds 0, 1 noise –",
    ):
        assert words in text
    assert 'role="img" aria-label="Test accuracy by epoch: plain from 60.0' in html
    order = [text.index(word) for word in ("It went", "look out", "Scores and", "F1", "Config")]
    assert order == sorted(order)


def test_what_is_not_known_is_left_out():
    text = Tags(render_report(Frame("bare", "Nothing."))).text
    for word in ("accuracy", "AUROC", "Scores and training", "Metrics", "Configuration", "None"):
        assert word not in text


def test_the_same_data_give_the_same_page():
    assert render_report(example()) == render_report(example())


def test_pictures_are_encoded_anew():
    secret = b"<script>in a comment</script>"
    source = picture("JPEG", size=(600, 300), comment=secret)
    assert secret in source
    uri = data_uri(source)
    assert uri is not None
    kind, _, content = uri.partition(";base64,")
    assert kind == "data:image/jpeg"
    clean = base64.b64decode(content)
    assert secret not in clean
    assert Image.open(io.BytesIO(clean)).size == (192, 96)
    tiny = data_uri(picture("GIF"))
    assert tiny is not None
    assert tiny.startswith("data:image/png;base64,")


@pytest.mark.parametrize("content", [b"", b"<svg onload='alert(1)'/>", picture()[:40]])
def test_what_is_no_picture_is_none(content):
    assert data_uri(content) is None


def test_the_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_report(path, example(notes=["lone \ud800 surrogate"]))
    first = path.read_bytes()
    assert first.startswith(b"<!doctype html>")
    assert first.rstrip().endswith(b"</html>")
    monkeypatch.setattr("gradmimic.report.page.bundle", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(path, example())
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
