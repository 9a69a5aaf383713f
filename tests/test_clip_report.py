"""The report of a run on pairs: what it says, and that nothing from data reaches it unescaped."""

import json

import pytest

pytest.importorskip("jinja2", reason="needs the extra 'report'")
pytest.importorskip("vl_convert", reason="needs the extra 'report'")
pytest.importorskip("PIL", reason="needs the extra 'images'")

from clip_runs import POOL, clip_keys, pairs, run_pairs, write_pools, write_tar
from test_report import EVIL, Tags, check_safe, data_in

from gradmimic.report import Frame, render_report
from gradmimic.report.grids import Grid


def text_of(html):
    return " ".join(Tags(html).text.split())


def test_numbers_stand_to_the_right_and_names_do_not():
    grid = Grid("", "", ["", ""], [["a", "−1.5\N{NO-BREAK SPACE}%"], ["b", "00000: 00000013"]])
    html = render_report(Frame("pool", "It went well.", grids=[grid]))
    assert '<td class="number">−1.5' in html
    assert '<td class="words">00000: ' in html


def test_the_report_of_a_run(tmp_path):
    write_pools(tmp_path)
    evil = [(f"{EVIL}{n}", image, f"{EVIL} {n}") for n, (_, image, _) in enumerate(pairs(40, 7))]
    write_tar(tmp_path / "pool" / "00003.tar", [*evil, ("gone", b"x", EVIL)])
    metrics, table = run_pairs(tmp_path, report=True, retrain=True, zero_shot=...)
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    page, text = check_safe(html), text_of(html)
    assert "<script>alert" not in html
    assert page.text.count("<script>alert(1)</script>") > 3
    assert f"{metrics['removed']} of {len(table):,} pairs" in text
    for name in ("plain", "re-weighted", "selected", "reference"):
        assert name in text
    for row in ("kept", *metrics["census"]["dropped"], "total"):
        assert row in text
    assert f"total {POOL + 41}" in text
    last = metrics["reweighted"]["measured"][-1]["retrieval"]["R@10"]
    assert f"{100 * last:.1f} %" in text
    gallery = data_in(html, "gallery-data")
    assert gallery["ids"] == table.sort_by("score")["sample_id"].to_pylist()
    assert len(gallery["pictures"]) >= 48
    removed = data_in(html, "thresholds-scores")
    assert removed["removed"][removed["start"]] == metrics["removed"]
    curve = data_in(html, "spec-curves-recall")["datasets"]["rows"]
    assert [row["value"] for row in curve if row["which"] == "plain"] == [
        own["retrieval"]["R@10"] for own in metrics["plain"]["measured"]
    ]


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
