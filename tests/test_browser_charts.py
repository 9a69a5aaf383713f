"""The charts in headless Chromium: drawn, moved, read aloud, in the dark and on a narrow screen."""

import re

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="needs the extra 'report'")
pytest.importorskip("vl_convert", reason="needs the extra 'report'")

from browser import chromium, open_page  # noqa: F401  fixtures

from gradmimic.report import Frame, Interval, write_report
from gradmimic.report.charts.classes import class_chart, confusion_chart
from gradmimic.report.charts.curves import curve_chart, visit_chart
from gradmimic.report.charts.epochs import epoch_chart
from gradmimic.report.charts.histogram import score_chart
from gradmimic.report.charts.threshold import thresholds

DRAWN = "() => [...document.querySelectorAll('.plot')].every((plot) => 'drawn' in plot.dataset)"
EVIL = "</script><img src=x onerror=\"window.hit=1\"><b onmouseover='window.hit=1'>{{ 7*7 }}"
NAMES = [EVIL, "'+(window.hit=1)+'", "a class with a name that is much too long for any axis"]
N = 50_000

RNG = np.random.default_rng(0)
WRONG = RNG.random(N) < 0.2
SCORES = RNG.normal(np.where(WRONG, -1.0, 1.0), 0.6)
P_CLEAN = 1 / (1 + np.exp(-4 * SCORES))
OWN = float(np.sort(SCORES)[9_000])


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page of 50,000 samples with every kind of chart, and what its threshold removes."""
    moved = thresholds(SCORES, own=OWN, removed=9_000, p_clean=P_CLEAN, wrong=WRONG)
    given, suggested = RNG.integers(3, size=(2, N))
    canaries = RNG.normal(-1, 0.6, 500)
    charts = [
        score_chart(SCORES, canaries, bad=WRONG, thresholds=moved),
        visit_chart([Interval(0.9, 0.8, 0.95), Interval(0.8, 0.7, 0.9)], "uniform"),
        curve_chart({"plain": {0: 0.5, 1: 0.6}, "re-weighted": {0: 0.5}}, "accuracy", "", 0.8),
        epoch_chart({epoch: SCORES / (1 + epoch) for epoch in range(9)}, WRONG),
        class_chart({name: Interval(0.2, 0.1, 0.3) for name in NAMES}, dict.fromkeys(NAMES, 0.25)),
        confusion_chart(NAMES, given, suggested, WRONG),
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, Frame("charts", "It went well.", charts=charts))
    return path, moved


@pytest.fixture
def show(open_page, report):  # noqa: F811
    """Open the page and wait until all is drawn."""

    def show_one(**options):
        page = open_page(report[0], **options)
        page.wait_for_function(DRAWN)
        return page

    return show_one


def words(page):
    return page.locator(".said").inner_text()


def test_all_charts_are_drawn_without_errors_or_requests(show, report):
    page = show()
    assert page.locator(".plot > svg, .plot svg.marks").count() == 6
    assert page.troubles == []
    ridges = page.locator("#epochs .role-axis-label").last.locator("text").all_text_contents()
    assert sorted(ridges) == [f"epoch {epoch}" for epoch in (0, 1, 2, 3, 5, 6, 7, 8)]
    assert page.locator("#scores .mark-rect.role-mark path").count() >= 120
    heads = page.locator("#charts h3").all_inner_texts()
    assert heads == [
        "Scores", "Can the scores be trusted?", "Test accuracy", "Scores by epoch",
        "Noise by class", "Which class is confused with which",
    ]  # fmt: skip
    assert report[0].stat().st_size < 1_300_000  # most of it is Vega


def test_names_of_html_and_script_stay_text(show):
    page = show()
    for figure, mark, names in (
        ("#classes", "symbol", sorted(NAMES)),  # as noisy each, so by name
        ("#confusion", "text", NAMES),
    ):
        page.locator(f"{figure} .mark-{mark}.role-mark > *").nth(1).hover(force=True)
        page.wait_for_function(
            "names => names.some((name) => document.querySelector('#vg-tooltip-element.visible')"
            "?.textContent.includes(name))",
            arg=names[1:2] if figure == "#classes" else names,
        )
    assert page.locator("#vg-tooltip-element img, #vg-tooltip-element b").count() == 0
    assert page.locator("#charts img, #charts b").count() == 0
    assert page.evaluate("window.hit") is None
    assert EVIL in page.locator("#classes details").text_content()


def test_the_slider_moves_the_threshold_by_keyboard(show, report):
    page, moved = show(), report[1]
    slider = page.get_by_role("slider")
    assert page.get_by_role("slider").count() == 1
    assert words(page) == moved.said(moved.start)
    assert "removes 9,000 of 50,000 samples" in words(page)
    line = page.locator("#scores .mark-rule.role-mark line")
    before = line.first.get_attribute("transform")
    slider.focus()
    for keys, place in (
        (["ArrowRight"], moved.start + 1),
        (["ArrowLeft"] * 3, moved.start - 2),
        (["Home"], 0),
        (["End"], len(moved.at) - 1),
    ):
        for key in keys:
            page.keyboard.press(key)
        assert words(page) == moved.said(place)
        assert moved.removed[place] == (moved.at[place] > SCORES).sum()
        at = page.locator(".call span").inner_text()
        assert float(at) == moved.at[place]
        assert slider.get_attribute("aria-valuetext") is not None
    page.wait_for_function(
        "before => document.querySelector('#scores .mark-rule.role-mark line')"
        ".getAttribute('transform') !== before",
        arg=before,
    )
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert words(page) == moved.said(moved.start)


def test_every_place_of_the_slider_says_what_python_says(show, report):
    page, moved = show(), report[1]
    said = page.evaluate(
        """() => {
          const slider = document.querySelector('.slider input');
          const all = [];
          for (let place = 0; place <= Number(slider.max); place++) {
            slider.value = place;
            slider.dispatchEvent(new Event('input'));
            all.push(document.querySelector('.said').textContent);
          }
          return all;
        }"""
    )
    assert said == [moved.said(place) for place in range(len(moved.at))]


def test_a_drag_in_the_chart_moves_the_threshold(show, report):
    page, moved = show(), report[1]
    page.evaluate(
        "document.addEventListener('gradmimic:threshold', (e) => { window.told = e.detail; })"
    )
    box = page.locator("#scores .plot svg").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.8, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.4, middle, steps=4)
    page.mouse.up()
    page.mouse.move(box["x"] + box["width"] * 0.9, middle)  # released: nothing more
    place = int(page.get_by_role("slider").input_value())
    assert words(page) == moved.said(place)
    assert page.evaluate("window.told.threshold") == moved.at[place]
    low, high = float(np.quantile(SCORES, 0.002)), float(np.quantile(SCORES, 0.998))
    assert abs((moved.at[place] - low) / (high - low) - 0.37) < 0.06


def test_a_narrow_screen_shows_everything_without_scrolling_sideways(show):
    page = show(viewport={"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    for plot in page.locator(".plot svg").all():
        box = plot.bounding_box()
        assert box["x"] >= 0
        assert 250 < box["width"] <= 400 - box["x"]
    page.set_viewport_size({"width": 1000, "height": 800})
    page.wait_for_function("() => document.querySelector('#scores .plot svg')?.clientWidth > 400")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_follows_light_and_dark_mode(show, scheme):
    page = show(color_scheme=scheme)
    inks = page.locator(".plot .role-axis-label text").evaluate_all(
        "all => [...new Set(all.map((text) => getComputedStyle(text).fill))]"
    )
    rule = page.locator("#scores .mark-rule.role-mark line").first.evaluate(
        "line => getComputedStyle(line).stroke"
    )
    ink, paper = ("rgb(29, 31, 35)", 252) if scheme == "light" else ("rgb(232, 233, 235)", 21)
    assert {*inks, rule} == {ink}
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground.startswith(f"rgb({paper}")
    page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    other = page.locator(".plot .role-axis-label text").first.evaluate(
        "text => getComputedStyle(text).fill"
    )
    assert other != ink


def test_charts_have_words_for_who_does_not_see_them(show):
    page = show()
    images = page.locator(".plot[role=img]")
    assert images.count() == 6
    labels = images.evaluate_all("all => all.map((one) => one.ariaLabel)")
    assert all(len(label) > 40 and label.endswith(".") for label in labels)
    assert page.get_by_role("status").count() == 1
    page.locator("#visits summary").focus()
    page.keyboard.press("Enter")
    table = page.locator("#visits table")
    assert table.is_visible()
    text = re.sub(r"\s+", " ", table.inner_text())
    assert text.startswith("visit AUROC at least at most 0 0.900")


def test_without_scripts_the_numbers_are_there(open_page, report):  # noqa: F811
    page = open_page(report[0], java_script_enabled=False)
    assert page.get_by_text("Their numbers stand in the table below each.").is_visible()
    assert words(page) == report[1].said(report[1].start)
    assert not page.get_by_role("slider").is_visible()
    assert page.locator("#charts table").count() == 6
