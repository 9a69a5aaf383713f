"""The report of a run on pairs: what it says, and that nothing from data reaches it unescaped."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="needs the extra 'report'")
pytest.importorskip("matplotlib", reason="needs the extra 'report'")
pytest.importorskip("PIL", reason="needs the extra 'images'")

from clip_runs import POOL, clip_keys, pairs, picture, run_pairs, write_pools, write_tar
from test_report import EVIL, Tags

from gradmimic.report.figures import histogram_figure
from gradmimic.report.grids import Grid
from gradmimic.report.numbers import Metric
from gradmimic.report.pairs import PairCard, PairsReport, render_pairs_report

RNG = np.random.default_rng(0)


def example(**changes):
    image = picture(RNG, "red", "blue")
    parts = {
        "title": "pool",
        "verdict": "It went well.",
        "tiles": [("plain", "40.0 %", "R@10")],
        "notes": ["look out"],
        "figures": [(histogram_figure(RNG.normal(size=90), RNG.normal(-2, 1, 9)), "Scores.")],
        "grids": [Grid("Read", "adds up", ["", "pairs", "the first"], [["kept", "9", "00: 07"]])],
        "metrics": [Metric("AUROC", 0.9, "0.5 is chance")],
        "lowest": [PairCard("a", "a cat", image, -0.5, False, 0.02, True, -0.125)],
        "highest": [PairCard("b", "a dog", None, 0.5, True)],
        "config": {"epochs": 2},
        "versions": {"gradmimic": "0.1.0"},
    }
    return PairsReport(**{**parts, **changes})


def text_of(html):
    return " ".join(Tags(html).text.split())


def test_everything_from_data_is_escaped():
    html = render_pairs_report(
        example(
            title=EVIL,
            verdict=EVIL,
            tiles=[(EVIL, EVIL, EVIL)],
            notes=[EVIL],
            figures=[("<svg></svg>", EVIL)],
            grids=[Grid(EVIL, EVIL, [EVIL, EVIL], [[EVIL, EVIL]])],
            metrics=[Metric(EVIL, EVIL, EVIL)],
            lowest=[PairCard(EVIL, EVIL, b"<svg onload='alert(1)'/>", 0.0, True)],
            highest=[PairCard(EVIL, EVIL, picture(RNG, "red", "red"), 0.0, True)],
            config={EVIL: EVIL},
            versions={EVIL: EVIL},
        )
    )
    page = Tags(html)
    assert "<script" not in html.lower()
    assert "script" not in page.tags
    assert page.handlers == []
    assert "onload" not in html
    assert page.text.count("<script>alert(1)</script>") >= 20
    assert "{{ 7 * 7 }}" in page.text


def test_the_page_needs_nothing_else():
    page = Tags(html := render_pairs_report(example()))
    assert page.targets
    assert all(target.startswith(("data:image/", "#")) for target in page.targets)
    assert not {"link", "iframe", "object", "script"} & set(page.tags)
    assert "default-src 'none'" in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_what_the_page_says():
    text = text_of(render_pairs_report(example()))
    for words in (
        "It went well. plain 40.0 % R@10 look out",
        "Read adds up pairs the first kept 9 00: 07",
        "The 1 lowest pairs", "Of 1, 1 are known to be swapped.",
        "a cat caption ✗ of another picture a removed score −0.5 p(match) 0.02 CLIP score −0.12",
        "This picture is not there any more, or cannot be decoded. a dog b kept score 0.5",
        "AUROC 0.9 0.5 is chance", "epochs 2", "gradmimic 0.1.0",
    ):  # fmt: skip
        assert words in text


def test_what_is_not_known_is_left_out():
    text = text_of(render_pairs_report(PairsReport("bare", "Nothing.")))
    for word in ("pairs", "Scores", "Metrics", "Configuration", "None", "swapped"):
        assert word not in text


def test_numbers_stand_to_the_right_and_names_do_not():
    grid = Grid("", "", ["", ""], [["a", "−1.5\N{NO-BREAK SPACE}%"], ["b", "00000: 00000013"]])
    html = render_pairs_report(example(grids=[grid]))
    assert '<td class="number">−1.5' in html
    assert '<td class="words">00000: ' in html


def test_the_histogram_of_little_data():
    none = np.zeros(0)
    assert histogram_figure(none, none) == ""
    for scores in (np.zeros(4), np.array([1.0])):
        assert histogram_figure(scores, none).startswith("<svg")
    drawn = histogram_figure(np.arange(9.0), none, np.arange(9) < 3, 2.5)
    assert "known to be bad" in drawn
    assert "kept →" in drawn
    assert ">canaries<" not in drawn
    assert ">canaries<" in histogram_figure(np.arange(9.0), np.arange(4.0))


def test_the_report_of_a_run(tmp_path):
    write_pools(tmp_path)
    evil = [(f"{EVIL}{n}", image, f"{EVIL} {n}") for n, (_, image, _) in enumerate(pairs(40, 7))]
    write_tar(tmp_path / "pool" / "00003.tar", [*evil, ("gone", b"x", EVIL)])
    metrics, table = run_pairs(tmp_path, report=True, retrain=True, zero_shot=...)
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    page, text = Tags(html), text_of(html)
    assert "script" not in page.tags
    assert page.handlers == []
    assert page.text.count("<script>alert(1)</script>") > 3
    assert html.count('src="data:image/') == 48
    assert f"{metrics['removed']} of {len(table):,} pairs" in text
    for name in ("plain", "re-weighted", "selected", "reference"):
        assert name in text
    for row in ("kept", *metrics["census"]["dropped"], "total"):
        assert row in text
    assert f"total {POOL + 41}" in text
    last = metrics["reweighted"]["measured"][-1]["retrieval"]["R@10"]
    assert f"{100 * last:.1f} %" in text
    lowest = table.sort_by("score")["sample_id"][0].as_py()
    assert f"{lowest} removed score" in text or f"{lowest} kept score" in text


def test_a_terminal_shows_the_census_and_no_markup(tmp_path, monkeypatch, capsys):
    from test_cli import call, flags_of

    write_pools(tmp_path)
    write_tar(tmp_path / "pool" / "00003.tar", [("gone", b"x", "[red]")])
    keys = clip_keys(tmp_path, task="clip", out=f"{tmp_path}/[red]run")
    assert call(monkeypatch, "run", *flags_of(keys)) == 0
    printed = capsys.readouterr()
    text = " ".join(printed.out.split())
    assert f"{POOL + 1} total" in text
    assert "2 the picture cannot be decoded 00000: 00005" in text
    assert "[red]run/metrics.json" in printed.out.replace("\n", "")
    for name in ("read", "reference", "plain", "re-weighted"):
        assert name in printed.err
    assert json.loads((tmp_path / "[red]run" / "metrics.json").read_text())["samples"] == POOL - 2
