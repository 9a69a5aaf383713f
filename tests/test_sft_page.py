"""The report on instructions: coloured tokens, both ends and the border, nothing unescaped."""

import re
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("jinja2", reason="needs the extra 'report'")
pytest.importorskip("vl_convert", reason="needs the extra 'report'")

from test_report import EVIL, Tags, check_safe

from gradmimic import ScoreLog, select
from gradmimic.data.instructions import Instruction, Message
from gradmimic.report.grids import Grid
from gradmimic.report.numbers import Metric
from gradmimic.report.tokens import TokenCard, TokensReport, render_tokens_report
from gradmimic.run.sft.config import SftConfig
from gradmimic.run.sft.page import BORDER, HIGHEST, LOWEST, write_sft_page
from gradmimic.run.sft.tokens import SCHEMA

TOKENS = [("bad", -1.0), (" pale", 0.02), (" good", 0.5), ("\n", 1.0)]


def card(**changes):
    parts = {"sample_id": "7", "prompt": "Say.", "response": "all", "score": 0.13, "kept": True}
    return TokenCard(**{**parts, "tokens": TOKENS, **changes})


def page(*cards):
    return render_tokens_report(TokensReport("run", "Done.", ends=[("lowest", "First.", cards)]))


def spans(html):
    return re.findall(r'<span(?: class="(\w\d)")? title="([^"]+)">([^<]*)</span>', html)


def test_tokens_are_coloured_by_sign_and_size_and_tell_their_score():
    assert spans(page(card())) == [
        ("o5", "−1", "bad"), ("", "+0.02", " pale"), ("t2", "+0.5", " good"), ("t5", "+1", "\n"),
    ]  # fmt: skip


def test_one_scale_holds_for_the_page_and_outliers_do_not_stretch_it():
    usual = card(tokens=[(" a", 1.0)] * 60)
    html = page(usual, card(tokens=[("odd", -1000.0), ("b", 0.5)]))
    assert {name for name, _, text in spans(html) if text == " a"} == {"t5"}
    assert spans(html)[-2:] == [("o5", "−1e+03", "odd"), ("t2", "+0.5", "b")]
    assert '<div class="legend"><span class="ends"><span>−1</span>' in html


def test_tokens_put_together_are_the_response_with_its_blanks():
    html = page(card())
    (response,) = re.findall(r'<p class="response">(.*?)</p>', html, re.DOTALL)
    assert re.sub("<[^>]+>", "", response) == "bad pale good\n"
    assert "white-space: pre-wrap" in html


def test_a_long_response_is_cut_and_says_so():
    html = page(card(tokens=[("x", 0.1)] * 1300))
    assert len(spans(html)) == 256
    assert "… 1,044 more tokens" in html


def test_without_scores_of_tokens_the_response_is_plain_text():
    html = page(card(tokens=None, response="all of it"))
    assert spans(html) == []
    assert "all of it" in html
    assert "not asked for" in html
    assert 'class="legend"' not in html


def test_everything_from_data_is_escaped():
    evil = card(sample_id=EVIL, prompt=EVIL, tokens=[(EVIL, 0.5), ("<script>", -0.5)])
    html = render_tokens_report(
        TokensReport(
            EVIL, EVIL, [(EVIL, EVIL, EVIL)], [EVIL], [], None,
            [Grid(EVIL, EVIL, [EVIL, EVIL], [[EVIL, EVIL]])], [Metric(EVIL, EVIL, EVIL)],
            {EVIL: EVIL}, {EVIL: EVIL},
            ends=[("lowest", EVIL, [evil, card(tokens=None, response=EVIL)])],
        )
    )  # fmt: skip
    found = check_safe(html)
    assert "<script" not in html.lower()
    assert found.text.count("<script>alert(1)</script>") >= 20
    assert "{{ 7 * 7 }}" in found.text


def test_the_page_needs_nothing_else():
    found = check_safe(page(card()))
    assert found.scripts == []
    assert all(target.startswith("#") for target in found.targets)


def test_colours_are_laid_over_the_page_so_ink_stays_readable_in_the_dark():
    shades = re.findall(r"\.([ot])(\d) \{ background: rgb\((.*?) / (\d+)%\)", page(card()))
    assert len(shades) == 10
    assert {name: colour for name, _, colour, _ in shades} == {"o": "232 113 10", "t": "0 133 199"}
    assert max(int(opacity) for *_, opacity in shades) == 60


def scored(folder, n=120, bad=30):
    """Log scores of samples, the first of them bad, and of canaries."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(-2, 0.4, bad), rng.normal(1, 0.4, n - bad)])
    ids = [f"row {number}" for number in range(n)]
    log = ScoreLog(folder / "log")
    for scorer, own in (("mimic", scores), ("reference_loss", scores - 3)):
        log.append(ids, own, np.full(n, 1 / n), np.full(n, 2.5), epoch=0, step=0, scorer=scorer)
    c = n // 2
    log.append(
        ids[:c], rng.normal(-2, 0.4, c), np.zeros(c), np.full(c, 2.5), epoch=0, step=0,
        canary=["swapped"] * c,
    )  # fmt: skip
    log.flush()
    rows = [
        {"sample_id": own, "tokens": ["a", " b"], "scores": [score - 1, score + 1]}
        for own, score in zip(ids, scores.tolist(), strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "token_scores.parquet")
    return log, dict(zip(ids, scores.tolist(), strict=True))


def written(folder, log, tokens=True, asked=None):
    config = SftConfig(data="d.jsonl", model="m", reference="r", out=str(folder / "my run"))
    area = {"value": 0.98, "low": 0.97, "high": 0.99}
    values = {
        "auroc": {"mimic": area, "reference_loss": area}, "loss": 2.5, "reference_loss": 1.5,
        "quality": {
            "noise_rate": {"value": 0.25, "low": 0.2, "high": 0.3},
            "auroc": {"swapped": area}, "auroc_by_visit": [area],
        },
    }  # fmt: skip
    census = [SimpleNamespace(what="kept", count=120, example="")]
    outcome = SimpleNamespace(
        counted="rows",
        values=values, metrics=[Metric("samples scored", 120)], notes=["look out"], census=census,
        files={"report": folder / "report.html"},
    )  # fmt: skip

    def look_up(wanted):
        if asked is not None:
            asked.extend(wanted)
        return {
            own: Instruction(own, (Message("user", f"q {own}"), Message("assistant", f"a {own}")))
            for own in wanted
            if own != "row 0"
        }

    selection = select(log)
    path = folder / "token_scores.parquet" if tokens else None
    write_sft_page(config, outcome, selection, log, look_up, path)
    return (folder / "report.html").read_text("utf-8"), selection


def test_the_ends_and_the_border_of_the_ranking_are_shown_each_sample_once(tmp_path):
    log, scores = scored(tmp_path)
    asked = []
    html, selection = written(tmp_path, log, asked=asked)
    assert len(asked) == len(set(asked))
    asked = asked[: LOWEST + 2 * BORDER + HIGHEST]  # the others are for the gallery
    ranked = sorted(scores, key=scores.get)
    assert asked[:LOWEST] == ranked[:LOWEST]
    assert asked[-HIGHEST:] == ranked[::-1][:HIGHEST]
    border = asked[LOWEST:-HIGHEST]
    cut = len(selection.removed)
    assert border == ranked[cut - BORDER : cut + BORDER]
    assert {*ranked[:cut]} == {*selection.removed}
    text = " ".join(check_safe(html).text.split())
    for words in (
        "25.0 % of the responses do not fit", "look out", "my run",
        "The scores can be trusted: they tell canaries from samples with AUROC 0.980",
        f"removes {cut} of 120 samples",
    ):  # fmt: skip
        assert words in text
    assert f"q {ranked[1]} a b {ranked[1]} removed" in text
    assert f"score {scores[ranked[1]]:.3g}".replace("-", "−") in text


def test_a_page_without_scores_of_tokens_or_of_few_samples(tmp_path):
    log, _ = scored(tmp_path, n=5, bad=2)
    html, _ = written(tmp_path, log, tokens=False)
    assert spans(html) == []
    text = " ".join(Tags(html).text.split())
    assert "a row 1" in text
    assert "The 4 lowest" in text
    assert "The 1 highest" in text
    assert "This sample is not there any more." in text  # row 0 cannot be found again
