"""Tables over seeds hold what one would compute by hand, and pictures show the tables' figures."""

import csv
import io
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from rich.console import Console

from gradmimic.errors import ConfigError, DataError
from gradmimic.reproduce import plots
from gradmimic.reproduce.tables import Mean, csv_text, pivot, write_tables

RECORDS = [
    {"set": "a", "noise": 0.4, "seed": 0, "method": "plain", "value": 0.70},
    {"set": "a", "noise": 0.4, "seed": 1, "method": "plain", "value": 0.74},
    {"set": "a", "noise": 0.4, "seed": 0, "method": "mimic", "value": 0.80},
    {"set": "a", "noise": 0.4, "seed": 1, "method": "mimic", "value": None},
    {"set": "a|<b>\nc", "noise": 0.6, "seed": 0, "method": "mimic", "value": 0.5},
]


def table(**options):
    return pivot(RECORDS, "accuracy, %", rows=["set", "noise"], column="method", **options)


def test_a_table_averages_over_what_its_rows_and_columns_do_not_name():
    rows = table().rows
    plain, mimic = rows["a", "0.4"]
    assert plain == Mean(pytest.approx(0.72), pytest.approx(0.02 * 2**0.5), 2)
    assert mimic == Mean(0.80, None, 1)  # a figure that is missing is no figure
    assert rows["a|<b>\nc", "0.6"] == (None, Mean(0.5, None, 1))


def test_means_and_deviations_are_those_of_numpy():
    chance = np.random.default_rng(0)
    for n in (2, 3, 7):
        values = chance.normal(size=n)
        mean = Mean.of(values.tolist())
        assert mean.value == pytest.approx(values.mean(), rel=1e-12)
        assert mean.deviation == pytest.approx(values.std(ddof=1), rel=1e-12)


def test_markdown_keeps_every_text_in_its_cell():
    text = table(scale=100, digits=1).markdown().splitlines()
    assert text[0] == "**accuracy, %**"
    assert [cell.strip() for cell in text[2].split("|")[1:-1]] == ["set", "noise", "plain", "mimic"]
    assert [cell.strip() for cell in text[4].split("|")[1:-1]] == ["a", "0.4", "72.0 ± 2.8", "80.0"]
    assert text[5].replace("\\|", "").count("|") == 5
    assert "a\\|&lt;b> c" in text[5]


def test_csv_holds_unrounded_figures_of_all_tables():
    other = pivot(RECORDS[:2], "another", rows=["seed"], column="method")
    rows = list(csv.DictReader(io.StringIO(csv_text([table(scale=100), other]))))
    assert [row["table"] for row in rows] == ["accuracy, %"] * 3 + ["another"] * 2
    assert float(rows[0]["mean"]) == pytest.approx(0.72)
    assert float(rows[0]["deviation"]) == pytest.approx(0.02 * 2**0.5)
    assert (rows[1]["deviation"], rows[1]["seeds"]) == ("", "1")
    assert (rows[3]["seed"], rows[3]["set"]) == ("0", "")
    assert rows[2]["set"] == "a|<b>\nc"


def test_a_terminal_shows_names_as_they_are():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(
        pivot([{"a": "[red]", "b": "x", "value": 1}], "t", rows=["a"], column="b").shown()
    )
    assert "[red]" in console.export_text()


def test_files_hold_the_command_the_tables_and_the_machine(tmp_path):
    files = write_tables(
        tmp_path / "new",
        "accuracy",
        [table(scale=100)],
        command="gradmimic reproduce x",
        machine={"cores": 2},
        told=["It holds."],
    )
    text = files["Markdown"].read_text()
    assert text.startswith("```sh\ngradmimic reproduce x\n```\n\n**accuracy, %**")
    assert text.endswith("\n- It holds.\n")
    content = json.loads(files["JSON"].read_text())
    assert content["machine"] == {"cores": 2}
    assert content["tables"][0]["points"] == json.loads(json.dumps(table(scale=100).points()))
    assert files["CSV"].read_text() == csv_text([table(scale=100)])


def test_no_records_make_no_table():
    with pytest.raises(DataError, match="'empty' has no figures; expected one record or more"):
        pivot([], "empty", rows=["set"], column="method")


def points():
    return [
        {
            "x": point["value"], "y": point["value"], "low": point["low"], "high": point["high"],
            "name": point["column"], "group": point["noise"], "panel": point["set"],
        }
        for point in table().points()
    ]  # fmt: skip


CHARTS = {
    "lines": lambda p: plots.lines(p, title="t", x="x", y="y", told_apart=["mimic"]),
    "dots": lambda p: plots.dots(p, title="t", x="x", group="noise"),
    "against": lambda p: plots.against(p, title="t", x="x", y="y"),
}


@pytest.mark.parametrize("kind", CHARTS)
def test_a_picture_shows_the_points_of_the_table(kind, tmp_path):
    chart = CHARTS[kind](points())
    drawn = chart.to_dict()["data"]["values"]
    assert [(own["x"], own["low"], own["high"], own["name"]) for own in drawn] == [
        (own["x"], own["low"], own["high"], own["name"]) for own in points()
    ]
    text = plots.save(chart, tmp_path / "sub" / "picture.svg").read_text()
    assert ET.fromstring(text).tag.endswith("svg")  # noqa: S314
    assert "<b>" not in text  # a name is no markup
    assert "#ffffff" in text


def test_a_picture_may_be_a_png(tmp_path):
    path = plots.save(CHARTS["dots"](points()[:1]), tmp_path / "picture.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_other_pictures_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"ending in .svg or .png, got 'picture.pdf'"):
        plots.save(CHARTS["dots"](points()), tmp_path / "picture.pdf")
