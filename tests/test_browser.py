"""The gallery in headless Chromium: searched, sorted, decided on, exported and read back."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="needs the extra 'report'")
pytest.importorskip("PIL", reason="needs the extra 'images'")

from browser import chromium, open_page  # noqa: F401  fixtures
from galleries import CLASSES, LOG, encoded, labelled, write_page
from selections import make

from gradmimic.curate import Selection, select
from gradmimic.curate.review import log_key, read_review
from gradmimic.log import ScoreLog
from gradmimic.report.gallery import Gallery, arrange

FOCUSED = "document.activeElement.ariaLabel || document.activeElement.textContent"
EVIL = "</script><img src=x onerror=\"window.hit=1\"><svg onload='window.hit=1'>{{ 7*7 }}"


@pytest.fixture
def show(open_page, tmp_path):  # noqa: F811
    """Write a page with a gallery and open it."""

    def show_one(gallery, **options):
        return open_page(write_page(tmp_path / "report.html", gallery), **options)

    return show_one


def ids(page):
    """Ids of the cards that are shown, in order."""
    labels = page.locator(".g-card").evaluate_all("all => all.map(one => one.ariaLabel)")
    return [label.split(",")[0].partition(" ")[2] for label in labels]


def scores(page):
    labels = page.locator(".g-card").evaluate_all("all => all.map(one => one.ariaLabel)")
    return [float(label.split("score ")[1].split(",")[0].replace("−", "-")) for label in labels]


def status(page):
    return page.locator("#g-status").text_content()


def choose(page, **values):
    for name, value in values.items():
        field = page.locator(f"#g-{name}")
        field.fill(value) if name == "search" else field.select_option(value)


def expected(gallery, rows):
    known = gallery.arranged.table["sample_id"].to_pylist()
    return [str(known[row]) for row in rows]


def press(page, keys):
    for key in keys.split():
        page.keyboard.press(key)


def export(page, path):
    with page.expect_download() as caught:
        page.locator("#g-export").click()
    caught.value.save_as(path)
    return caught.value.suggested_filename


def test_ends_and_orders(show):
    gallery = labelled()
    page = show(gallery)
    arranged = gallery.arranged
    assert not page.locator("#g-plain").is_visible()
    assert ids(page) == expected(gallery, range(10))
    choose(page, end="highest")
    assert ids(page) == expected(gallery, range(119, 109, -1))
    choose(page, sort="lowest")
    assert ids(page) == expected(gallery, range(110, 120))
    choose(page, end="borderline")
    distance = np.abs(arranged.table["score"].to_numpy() + 1 / 3)
    assert ids(page) == expected(gallery, np.argsort(distance, kind="stable")[:10])
    choose(page, end="", sort="id")
    assert ids(page) == sorted(expected(gallery, range(120)))[:48]
    assert page.locator("#g-page").text_content() == "page 1 of 3"
    page.get_by_role("button", name="Next").click()
    assert ids(page) == sorted(expected(gallery, range(120)))[48:96]
    choose(page, sort="given")
    names = page.locator(".g-card dd:nth-of-type(1)").all_text_contents()
    assert [name[2:] for name in names] == sorted(CLASSES[c] for c in gallery.given)[:48]


def test_search_and_filters(show):
    gallery = labelled()
    page = show(gallery)
    choose(page, end="", search="TEXT OF ROW 11")
    assert ids(page) == expected(gallery, [11, *range(110, 120)])
    assert status(page).startswith("11 of 120 samples")
    choose(page, search="two-toed", sort="lowest")
    sloth = (gallery.given == 2) | (gallery.suggested == 2)
    assert ids(page) == expected(gallery, np.flatnonzero(sloth)[:48])
    choose(page, search="s00007")
    assert ids(page) == ["s00007"]
    choose(page, search="", given="0", suggested="1")
    pair = (gallery.given == 0) & (gallery.suggested == 1)
    assert pair.sum() > 3
    assert ids(page) == expected(gallery, np.flatnonzero(pair))
    keep = gallery.arranged.table["keep"].to_numpy(zero_copy_only=False)
    choose(page, state="1")
    assert ids(page) == expected(gallery, np.flatnonzero(pair & keep))
    choose(page, state="0")
    assert ids(page) == expected(gallery, np.flatnonzero(pair & ~keep))
    choose(page, search="nothing has this")
    assert ids(page) == []
    assert status(page).startswith("0 of 120 samples")
    press(page, "Tab Tab Tab")  # no card to reach, and nothing breaks


def test_the_border_follows_the_threshold_of_the_chart(show):
    page = show(labelled())
    choose(page, end="", sort="borderline")
    page.evaluate(
        "document.dispatchEvent(new CustomEvent('gradmimic:threshold', {detail: {threshold: 0.5}}))"
    )
    distances = [abs(score - 0.5) for score in scores(page)]
    assert distances == pytest.approx(sorted(distances), abs=2e-3)
    assert distances[0] < 0.01


def test_reviewing_by_keyboard_and_undoing(show):
    gallery = labelled()
    first = expected(gallery, range(10))
    differs = int(np.flatnonzero(gallery.given[:10] != gallery.suggested[:10])[0])
    page = show(gallery)
    card = page.locator(".g-card")
    card.first.focus()
    press(page, "k r")
    assert status(page).endswith(
        f"2 reviewed (1 kept, 1 removed); sample {first[1]}: removed by you"
    )
    assert page.evaluate(FOCUSED).startswith(f"sample {first[2]},")
    press(page, "U")
    assert "1 reviewed (1 kept, 0 removed)" in status(page)
    assert page.evaluate(FOCUSED).startswith(f"sample {first[1]},")
    press(page, "Home " + "ArrowRight " * differs + "l")
    label = CLASSES[gallery.suggested[differs]]
    assert status(page).endswith(f"sample {first[differs]}: kept by you as {label}")
    pressed = card.nth(differs).locator("[aria-pressed=true]").all_text_contents()
    assert pressed == [f"Keep as {label}"]
    choose(page, reviewed="1")
    assert set(ids(page)) == {first[0], first[differs]}
    choose(page, reviewed="0")
    assert ids(page) == [one for one in first if one not in (first[0], first[differs])]
    choose(page, reviewed="", state="1")
    assert set(ids(page)) == {first[0], first[differs]}


def test_moving_over_rows_and_pages(show):
    gallery = labelled()
    page = show(gallery)
    choose(page, end="")
    order = expected(gallery, range(120))

    def at():
        return order.index(page.evaluate(FOCUSED).split(",")[0][7:])

    page.locator(".g-card").first.focus()
    press(page, "ArrowDown")
    columns = at()
    assert columns > 1
    press(page, "ArrowRight ArrowUp")
    assert at() == 1
    press(page, "ArrowDown ArrowDown ArrowDown ArrowDown ArrowUp ArrowUp ArrowUp")
    hidden = """() => document.activeElement.getBoundingClientRect().top
        - document.getElementById('g-actions').getBoundingClientRect().bottom"""
    assert page.evaluate(hidden) >= 0  # what has the focus is not behind the bar that stays
    press(page, "End ArrowRight")
    assert at() == 48
    assert page.locator("#g-page").text_content() == "page 2 of 3"
    press(page, "ArrowLeft")
    assert at() == 47
    press(page, "PageDown PageDown PageDown")
    assert at() == 96
    press(page, "End ArrowRight k")
    assert at() == 119
    press(page, "PageUp Home")
    assert at() == 48


def test_buttons_decide_and_release(show):
    page = show(labelled())
    card = page.locator(".g-card").nth(3)
    remove = card.get_by_role("button", name="Remove")
    remove.click()
    assert remove.get_attribute("aria-pressed") == "true"
    assert card.get_by_text("removed by you").is_visible()
    assert page.locator("#g-export").text_content() == "Export 1 decisions"
    remove.click()
    assert remove.get_attribute("aria-pressed") == "false"
    assert page.locator("#g-export").is_disabled()
    page.get_by_role("button", name="Undo").click()
    assert remove.get_attribute("aria-pressed") == "true"


def test_decisions_outlive_a_reload_and_are_the_logs_own(open_page, tmp_path):  # noqa: F811
    path = write_page(tmp_path / "one.html", labelled())
    page = open_page(path)
    page.locator(".g-card").first.focus()
    press(page, "k r")
    before = ids(page)
    page.reload()
    assert "2 reviewed (1 kept, 1 removed)" in status(page)
    assert page.locator(".g-card.decided").count() == 2
    # The page is made anew from the same log, with other samples on it: nothing is lost.
    write_page(path, labelled(30, ids=[f"other{row:02}" for row in range(30)]))
    page.reload()
    assert page.locator("#g-export").text_content() == "Export 2 decisions"
    export(page, tmp_path / "review.jsonl")
    assert read_review(tmp_path / "review.jsonl").decisions == {
        before[0]: "keep",
        before[1]: "remove",
    }
    write_page(path, labelled(log="f" * 16))
    page.reload()
    assert "0 reviewed" in status(page)


def test_a_browser_that_stores_nothing_says_so(open_page, tmp_path):  # noqa: F811
    page = open_page(write_page(tmp_path / "report.html", labelled()))
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new Error('denied'); }})"
    )
    page.reload()
    page.locator(".g-card").first.focus()
    press(page, "k")
    assert "1 reviewed" in status(page)
    assert "cannot store decisions: export them before you leave" in status(page)


@pytest.mark.parametrize("kind", ["text", "number"])
def test_the_export_is_what_select_reads(kind, show, tmp_path, monkeypatch, capsys):
    known = [f"a/{row}.png" for row in range(40)]
    if kind == "number":
        known = [2**53 + 1, *range(2**53 + 3, 2**53 + 42)]  # which a browser's numbers cannot hold
    values = np.linspace(-1, 1, 40) + np.where(np.arange(40) < 20, -3, 3)
    with ScoreLog(tmp_path / "log", config={"lr": 1.0}, seed=3) as log:
        log.append(known, values, [1 / 40] * 40, [0.0] * 40, epoch=0, step=0)
        key = log_key(log)
    before = select(tmp_path / "log", "two_means")
    arranged = arrange(before.table, None, end=5)
    suggested = np.ones(40, int)
    gallery = Gallery("pe ts/ü", key, arranged, ("cat", 'd"og'), np.zeros(40, int), suggested)
    page = show(gallery)
    page.locator(".g-card").first.focus()
    press(page, "k r l")
    name = export(page, tmp_path / "review.jsonl")
    assert name == "review-pe_ts_ü.jsonl"
    head, *lines = (tmp_path / "review.jsonl").read_text().splitlines()
    assert json.loads(head) == {"gradmimic_review": 1, "run": "pe ts/ü", "log": key}
    ranked = arranged.table["sample_id"].to_pylist()
    assert [json.loads(line) for line in lines] == [
        {"sample_id": ranked[0], "decision": "keep"},
        {"sample_id": ranked[1], "decision": "remove"},
        {"sample_id": ranked[2], "decision": "keep", "label": 'd"og'},
    ]
    from gradmimic.cli import main

    arguments = ("log", "--rule", "two_means", "--review", "review.jsonl", "--out", "out.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gradmimic", "select", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code, capsys.readouterr().err
    after = Selection.from_parquet(tmp_path / "out.parquet")
    assert set(after.kept.tolist()) == {*before.kept.tolist(), ranked[0], ranked[2]} - {ranked[1]}


def test_what_comes_from_data_stays_text(show):
    n = 6
    names = sorted(f"{EVIL}{row}" for row in range(n))
    arranged = arrange(make(names, [False] * 3 + [True] * 3).table, 0.5)
    classes = (EVIL, "</select><script>window.hit=1</script>")
    column = np.arange(n) % 2
    gallery = Gallery(
        EVIL, LOG, arranged, classes, column, 1 - column, column,
        text=lambda row: f"{EVIL}\u2028\n<!--<script>",
        image=lambda row: b"<svg onload='window.hit=1'/>",
    )  # fmt: skip
    page = show(gallery)
    page.locator(".g-card").first.focus()
    press(page, "k l r u")
    choose(page, search="<img src=x", given="0")
    assert ids(page)
    assert page.locator(".g-card .text").first.text_content() == f"{EVIL}\u2028\n<!--<script>"
    assert page.locator("#g-given option").nth(1).text_content() == EVIL
    assert page.locator("#gallery img, #gallery svg").count() == 0
    assert page.get_by_text("This picture cannot be decoded.").count() == 2
    assert page.evaluate("window.hit") is None
    assert page.locator("body script").count() == 2  # the data, and ours


def test_pictures_come_when_they_are_near(show, monkeypatch):
    monkeypatch.setattr("gradmimic.report.gallery.LOWEST", 60)
    gallery = labelled(image=lambda row: encoded((row, 0, 0), (40, 30)), end=48)
    page = show(gallery, viewport={"width": 500, "height": 500})
    assert page.locator(".g-card img").count() == 48
    assert page.locator(".g-card img[src]").count() < 48
    assert page.get_by_text("The pictures of").count() == 1
    page.locator(".g-card").first.focus()
    press(page, "End")
    last = page.locator(".g-card img").last
    page.wait_for_function(
        "one => one.complete && one.naturalWidth === 40", arg=last.element_handle()
    )
    assert last.get_attribute("alt") == f"picture of {expected(gallery, [47])[0]}"


def luminance(colour):
    """Relative luminance of rgb(…), as WCAG defines it."""
    rgb = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(scheme, show):
    page = show(labelled(), color_scheme=scheme)
    page.locator(".g-card").first.focus()
    press(page, "k")
    colours = """one => {
        let box = one;
        const clear = 'rgba(0, 0, 0, 0)';
        while (getComputedStyle(box).backgroundColor === clear) box = box.parentElement;
        return [getComputedStyle(one).color, getComputedStyle(box).backgroundColor];
    }"""
    places = (
        "#g-status", "#g-keys", "#g-keys kbd", "#g-tools label", "#g-search", "#g-end", "#g-export",
        ".g-card .facts", ".g-card .text", ".g-card dt", ".g-card dd.wrong", ".g-card dd.right",
        ".g-card button[aria-pressed=true]", ".g-card button[aria-pressed=false]",
    )  # fmt: skip
    for place in places:
        ink, paper = map(luminance, page.locator(place).first.evaluate(colours))
        contrast = (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)
        assert contrast >= 4.5, f"{place}: {contrast:.2f}"
        assert (ink > paper) == ((scheme == "dark") != ("aria-pressed=true" in place)), place


@pytest.mark.parametrize("width", [400, 320])
def test_nothing_runs_off_a_narrow_screen(width, show):
    long = "a_very_long_name_of_a_class" * 3
    known = [f"{'path' * 30}/{row:03}.png" for row in range(60)]
    gallery = labelled(60, ids=known, classes=("cat", "dog", long), text=lambda row: "word" * 60)
    page = show(gallery, viewport={"width": width, "height": 800})
    choose(page, end="")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ends = page.locator("#g-live *").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect().right)"
    )
    assert max(ends) <= width
    small = page.locator("#g-live button, #g-live select").evaluate_all(
        "all => all.filter(one => one.getBoundingClientRect().height < 24).length"
    )
    assert small == 0  # a finger's least target, by WCAG 2.2


def test_a_screen_reader_is_told_everything(show):
    gallery = labelled()
    page = show(gallery)
    told = page.locator("#g-live").aria_snapshot()
    for line in (
        '- search "Search and filter the samples":',
        '- searchbox "Search"', '- combobox "Show"', '- combobox "Given class"',
        '- combobox "Suggested class"', '- combobox "Decision"', '- combobox "Reviewed"',
        '- combobox "Sort by"', "- status: 10 of 120 samples; 0 reviewed (0 kept, 0 removed)",
        '- button "Undo" [disabled]', '- list "Samples":', '- navigation "Pages of samples":',
    ):  # fmt: skip
        assert line in told, told
    first = expected(gallery, [0])[0]
    given, suggested = CLASSES[gallery.given[0]], CLASSES[gallery.suggested[0]]
    spoken = f"sample {first}, given {given}, suggested {suggested}, score −1, removed: so"
    assert f'article "{spoken}"' in told
    assert told.count('- button "Remove"') == 10
    # By Tab: the tools, one card with its buttons, the pages; arrows reach the other cards.
    page.locator("#g-sort").focus()
    reached = []
    for _ in range(3):
        press(page, "Tab")
        reached.append(page.evaluate(FOCUSED))
    assert reached == [spoken, "Keep", "Remove"]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_without_scripts_the_lowest_are_a_table(show):
    gallery = labelled()
    page = show(gallery, java_script_enabled=False)
    assert not page.locator("#g-live").is_visible()
    rows = page.locator("#g-plain tbody tr")
    assert rows.count() == 50
    assert rows.first.locator("th").text_content() == expected(gallery, [0])[0]
    assert "removed: so" in rows.first.text_content()


def test_pairs_have_captions_and_no_classes(show):
    gallery = labelled(
        60, given=None, suggested=None, true=None, noun="pairs",
        bad=np.arange(60) < 3, facts={"CLIP score": {0: 0.257, 5: -0.1}},
    )  # fmt: skip
    page = show(gallery)
    assert page.locator("#g-tools select").count() == 4
    cards = page.locator(".g-card")
    assert "caption✗ of another picture" in cards.first.text_content()
    assert "CLIP score 0.26" in cards.first.text_content()
    assert "caption✓ its own" in cards.nth(5).text_content()
    cards.first.focus()
    press(page, "l")  # there is no label to take
    assert "0 reviewed" in status(page)
    assert page.locator("#g-keys").text_content().count("label") == 0


@pytest.mark.slow
def test_many_samples_leave_a_small_page(show):
    n = 50_000
    gallery = labelled(n, end=200, image=lambda row: encoded((row % 256, 9, 9), (32, 32)))
    page = show(gallery)
    assert page.evaluate("document.querySelectorAll('*').length") < 2_500
    choose(page, end="", search="S000")
    assert status(page).startswith("100 of 50,000 samples")
    assert page.evaluate("document.querySelectorAll('*').length") < 2_500
    choose(page, search="", sort="highest")
    assert ids(page) == expected(gallery, range(n - 1, n - 49, -1))
