import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="needs the extra 'report'")
matplotlib = pytest.importorskip("matplotlib", reason="needs the extra 'report'")
Image = pytest.importorskip("PIL.Image", reason="needs the extra 'images'")

from gradmimic.errors import DataError  # noqa: E402
from gradmimic.report import LowSample, Metric, ReportData, render_report, write_report  # noqa: E402
from gradmimic.report.figures import curve_figure, score_figure  # noqa: E402
from gradmimic.report.pictures import data_uri  # noqa: E402

EVIL = "<script>alert(1)</script>\"'{{ 7 * 7 }}"


def picture(kind="PNG", size=(8, 6), **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(buffer, kind, **options)
    return buffer.getvalue()


def example(**changes):
    rng = np.random.default_rng(0)
    low = LowSample("a/1.png", "cat", -0.5, suggested="dog", true="dog", p_clean=0.02, text="hi")
    parts = {
        "title": "digits",
        "total": 1000,
        "removed": 180,
        "plain_accuracy": 0.714,
        "reweighted_accuracy": 0.752,
        "reference_accuracy": 0.737,
        "auroc": 0.949,
        "metrics": [Metric("F1", 0.91, "0 … 1"), Metric("accuracy", 0.5, percent=True)],
        "scores": {epoch: rng.normal(size=200) for epoch in range(3)},
        "mislabelled": np.arange(200) < 80,
        "curves": {"plain": {0: 0.6, 1: 0.7}, "re-weighted": {0: 0.65, 1: 0.75}},
        "reference_level": 0.737,
        "lowest": [low, LowSample(7, "cat", -0.4, true="cat")],
        "config": {"epochs": 2, "seeds": [0, 1], "noise": None},
        "versions": {"gradmimic": "0.1.0"},
        "notes": ["look out"],
    }
    return ReportData(**{**parts, **changes})


class Tags(HTMLParser):
    """Collect the tags of a page, what its attributes point to, and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.targets, self.handlers, self.text = [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.targets += [value for name, value in attrs if name in {"src", "href", "xlink:href"}]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        if self.tags[-1:] != ["style"]:
            self.text += f"{data} "


def test_everything_from_data_is_escaped():
    low = LowSample(EVIL, EVIL, -1.0, suggested=EVIL, true=EVIL + "!", text=EVIL)
    shown = LowSample(EVIL, EVIL, -1.0, image=picture())
    html = render_report(
        example(
            title=EVIL,
            lowest=[low, shown],
            config={EVIL: EVIL},
            versions={EVIL: EVIL},
            notes=[EVIL],
            metrics=[Metric(EVIL, EVIL, EVIL)],
            curves={EVIL: {0: 0.5}},
        )
    )
    page = Tags(html)
    assert "<script" not in html.lower()
    assert "script" not in page.tags
    assert page.handlers == []
    # Heading and tab, four labels, text, three ids with the second's alt text in an attribute, …
    assert page.text.count("<script>alert(1)</script>") >= 14
    assert "{{ 7 * 7 }}" in page.text


def test_the_page_needs_nothing_else():
    html = render_report(example(lowest=[LowSample(1, "cat", -1.0, image=picture())]))
    page = Tags(html)
    assert page.targets
    assert all(target.startswith(("data:image/", "#")) for target in page.targets)
    assert not {"link", "iframe", "object", "script"} & set(page.tags)
    assert re.findall(r"url\((?!#)", html) == []
    assert "default-src 'none'" in html


def test_the_numbers_are_on_the_page():
    text = " ".join(Tags(render_report(example())).text.split())
    assert "took test accuracy from 71.4 % to 75.2 % (+3.8 points)" in text
    assert "removes 180 of 1,000 samples (18.0 %)" in text
    assert "AUROC 0.949" in text
    assert "accuracy 50.0 %" in text
    assert "1 of 2 carry a label that is known to be wrong" in text
    assert "given ✗ cat reference dog true dog a/1.png score −0.5 p(clean) 0.02" in text
    assert "given ✓ cat true cat 7 score −0.4" in text
    assert "epochs 2 seeds 0, 1 noise –" in text


def test_what_is_not_known_is_left_out():
    text = Tags(render_report(ReportData(title="bare", total=10, removed=0))).text
    assert "removes 0 of 10 samples" in text
    for word in ("accuracy", "AUROC", "Scores and training", "lowest", "Configuration", "None"):
        assert word not in text


def test_the_same_data_give_the_same_page():
    assert render_report(example()) == render_report(example())


def test_ids_in_the_page_are_unique():
    ids = re.findall(r'\bid="([^"]+)"', render_report(example()))
    assert len(ids) == len(set(ids))


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
def test_what_is_no_picture_is_said_so(content):
    assert data_uri(content) is None
    html = render_report(example(lowest=[LowSample(1, "cat", -1.0, image=content)]))
    assert "This picture cannot be decoded." in html
    assert "onload" not in html


def test_figures_tell_the_groups_apart_and_bring_settings_back():
    before = dict(matplotlib.rcParams)
    scores = {epoch: np.linspace(-1, 1, 50) / (epoch + 1) for epoch in range(20)}
    flags = np.arange(50) < 20
    plain, marked = score_figure(scores), score_figure(scores, flags)
    assert "wrong label" in marked
    assert "wrong label" not in plain
    drawn = re.findall(r">epoch (\d+)<", marked)
    assert len(drawn) == 8
    assert {"0", "19"} <= set(drawn)
    assert "currentColor" in plain
    assert dict(matplotlib.rcParams) == before


def test_figures_of_little_data():
    assert score_figure({}) == ""
    assert score_figure({0: np.full(3, np.nan)}) == ""
    for values in (np.zeros(5), np.array([1.0]), np.array([1.0, np.nan]), np.full(4, 1e-30)):
        assert score_figure({0: values}, np.zeros(len(values), bool)).startswith("<svg")
    assert curve_figure({}) == ""
    assert curve_figure({"plain": {}}) == ""
    assert ">reference<" in curve_figure({"plain": {3: 0.5}}, reference_level=0.6)
    assert ">training loss<" in curve_figure({"$x_1$": {0: 2.0, 1: 1.0}}, "loss")


def test_flags_and_scores_go_together():
    with pytest.raises(DataError, match="200 scores for epoch 0, but 3 flags of mislabelled"):
        example(mislabelled=np.zeros(3, bool))


def test_the_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_report(path, example(notes=["lone \ud800 surrogate"]))
    first = path.read_bytes()
    assert first.startswith(b"<!doctype html>")
    assert first.rstrip().endswith(b"</html>")
    monkeypatch.setattr("gradmimic.report.page.score_figure", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(path, example())
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
