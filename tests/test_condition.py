"""Conditions say what SQL says, of one row, and nothing else."""

import duckdb
import ibis
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradmimic.curate.condition import conditions
from gradmimic.errors import ConfigError

ROWS = pa.table(
    {
        "text": ["a cat", "", None, "Ünder 100%", "it's a dog"],
        "w": [100, 200, 300, None, -4],
        "h": [0, 50, 100, 200, 3],
        "score": [0.5, -1.5, None, 2.0, 0.25],
        "nsfw": [True, False, None, False, True],
        "face_bboxes": [[[0.1, 0.2]], [], None, [[0.1], [0.2]], []],
        "odd name; --": [1, 2, 3, 4, 5],
    }
)


def held(text, rows=ROWS):
    """Whether a condition holds for each row: True, False or None."""
    table = ibis.memtable(rows)
    columns = {name: table[name] for name in rows.column_names}
    parts = [part.over(columns) for part in conditions(text)]
    found = parts[0]
    for part in parts[1:]:
        found &= part
    return table.select(found=found).to_pyarrow()["found"].to_pylist()


@pytest.fixture(scope="module")
def in_sql():
    with duckdb.connect() as connection:
        connection.register("rows", ROWS)
        yield lambda text: [
            row[0]
            for row in connection.execute(f"select ({text}\n) from rows").fetchall()  # noqa: S608
        ]


@pytest.mark.parametrize(
    "text",
    [
        "length(text) > 5 and w >= 200",
        "w between 100 and 200",
        "w not between 100 and 200",
        "w in (100, 300)",
        "w not in (100, 300)",
        "w is null or text is not null",
        "nsfw is true",
        "nsfw is not false",
        "not nsfw",
        "not nsfw = (w > 150)",
        "text like '%cat'",
        "text ilike '%ü%'",
        "text not like 'a%'",
        "text not ilike 'A%'",
        "regexp_matches(text, '[0-9]+%$')",
        "contains(text, 'it''s') or starts_with(text, 'a') or ends_with(lower(text), '%')",
        "text = ''",
        "length(string_split(trim(text), ' ')) > 1",
        "len(face_bboxes) = 0",
        "array_length(face_bboxes) < 2",
        "greatest(w, h) / least(w, h) < 3",
        "w / 3 > 66.6 and -w < 1e3",
        "w % 3 = 2",
        "coalesce(score, 0) + abs(w) * 2 - h > 1",
        "round(score) = 0 or floor(score) = -2 or ceil(score) = 1",
        "sqrt(abs(w)) > 10 and ln(abs(w)) > 1 and upper(text) <> text",
        '"odd name; --" >= 3',
        "w > 1 -- and nothing after it",
        "((w > 1) and ((h > 1) and (w < 1000)))",
        "w > 1 and h > 1 or w < 0",
        "true",
    ],
)
def test_a_condition_means_what_duckdb_means_by_it(text, in_sql):
    assert held(text) == in_sql(text)
    assert [part.text for part in conditions(text)] == [
        again.text for part in conditions(text) for again in conditions(part.text)
    ]  # the spelling in a reason is a condition again


@st.composite
def expressions(draw, depth=3):
    if depth == 0 or draw(st.booleans()):
        column = draw(st.sampled_from(["w", "h", "score"]))
        sign = draw(st.sampled_from(["<", "<=", "=", "<>", ">", ">="]))
        return f"{column} {sign} {draw(st.sampled_from(['100', '-1.5', 'h', '0']))}"
    inner = draw(expressions(depth=depth - 1))
    other = draw(expressions(depth=depth - 1))
    form = draw(st.sampled_from(["({} and {})", "({} or {})", "not ({}) and {}", "{} and {}"]))
    return form.format(inner, other)


def test_ands_ors_and_nots_nest_as_in_sql(in_sql):
    @given(expressions())
    def check(text):
        assert held(text) == in_sql(text)

    check()


def test_a_condition_is_taken_apart_at_its_ands():
    parts = conditions("LENGTH(text)>5 and (w >= 200 or h<3) and not nsfw")
    assert [part.text for part in parts] == [
        "length(text) > 5",
        "w >= 200 or h < 3",
        "not nsfw",
    ] or [part.text for part in parts] == ["length(text) > 5", "w >= 200 OR h < 3", "NOT nsfw"]
    assert [sorted(part.columns) for part in parts] == [["text"], ["h", "w"], ["nsfw"]]


@pytest.mark.parametrize(
    "text",
    [
        "w in (select 1)",
        "exists(select 1)",
        "(select count(*) from rows) > 1",
        "count(*) > 1",
        "row_number() over () > 1",
        "read_text('/etc/passwd') = 'a'",
        "getenv('HOME') = 'a'",
        "w > ?",
        "w > $1",
        "*",
        "w::text = 'a'",
        "cast(w as int) > 1",
        "case when nsfw then w else h end > 1",
        "face_bboxes[1] is null",
        "w > interval 1 day",
        "w = null",
        "round(w, 2) > 1",
        "length() > 1",
        "trim(text, 'x') = 'a'",
        "regexp_matches(text, 'a', 'i')",
        "text like 'a' escape 'b'",
        "w in ()",
        "w > 99999999999999999999",
        "w > 1e400",
        "w is 3",
    ],
)
def test_whatever_is_no_plain_condition_is_refused(text):
    with pytest.raises(ConfigError):
        held(text)


@pytest.mark.parametrize(
    "text",
    ["", "w >", "drop table x", "w > 1; drop table x", "'open", "w > 1, h > 1", "(", "select 1"],
)
def test_what_is_no_expression_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="cannot read the condition .* such as length"):
        conditions(text)


def test_what_is_nested_or_long_beyond_reason_is_refused():
    with pytest.raises(ConfigError, match="nested too deeply|cannot read"):
        conditions("(" * 4900 + "w > 1" + ")" * 4900)
    with pytest.raises(ConfigError, match="at most 10,000 characters, this has 20,00"):
        conditions("w > 1" + " " * 20_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scor > 1", r"the condition scor > 1 needs a column 'scor'.* Did you mean score\? There"),
        ('text = "cat"', "needs a column 'cat'"),
        ("text > 5", "text > 5 does not work, as text, string, and 5, int8, do not fit"),
        ("length(w) > 1", r"length\(w\) needs a text or a list, but w is int64"),
        ("text + 1 > 2", r"text \+ 1 needs a number, but text is string"),
        ("w and h", "w is int64, not true or false. Compare it with something, e.g. w > 0"),
        ("w", "w is int64, not true or false"),
        ("w or nsfw", "needs a condition, but w is int64"),
        ("sum(w) > 1", r"a condition cannot use sum\(w\), as sum\(w\) > 1 does. It compares col"),
    ],
)  # fmt: skip
def test_messages_say_what_does_not_fit(text, message):
    with pytest.raises(ConfigError, match=message):
        held(text)
