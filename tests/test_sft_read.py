"""Instructions are read in the shapes people use, and every row is accounted for."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sft_runs import rows, tokenizer, write_lines

from gradmimic.data.instructions import Instruction, as_instruction, open_instructions, reasons
from gradmimic.errors import DataError
from gradmimic.run.sft.encode import Encoder
from gradmimic.run.sft.samples import read_samples

ASKED, SAID = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
SHARED = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
IN_PIECES = {"role": "assistant", "content": [{"type": "text", "text": "So."}]}
PICTURE = {"role": "assistant", "content": [{"type": "image"}]}
PAIR = [("user", "Why?"), ("assistant", "So.")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [ASKED, SAID]}, PAIR),
        ({"messages": [ASKED, SAID, ASKED]}, PAIR),  # nobody learns what comes last
        ({"conversations": SHARED}, PAIR),
        ({"messages": [ASKED, IN_PIECES]}, PAIR),
        ({"prompt": [ASKED], "completion": [SAID]}, PAIR),
        ({"prompt": "Why?", "completion": "So."}, PAIR),
        ({"instruction": "Why?", "input": "", "output": "So."}, PAIR),
        ({"instruction": "Why?", "output": "So.", "input": None}, PAIR),
        (
            {"instruction": "Why?", "input": "Now", "output": "So."},
            [("user", "Why?\n\nNow"), PAIR[1]],
        ),
        ({"instruction": "Why?", "context": "", "response": "So.", "category": "x"}, PAIR),
        ({"question": "Why?", "answer": "So."}, PAIR),
        ({"system": "Be.", "question": "Why?", "answer": "So."}, [("system", "Be."), *PAIR]),
        ({"prompt": "other", "prompt_id": "1", "messages": [ASKED, SAID]}, PAIR),
        ({"messages": None, "question": "Why?", "answer": "So."}, PAIR),  # a column of other rows
    ],
)  # fmt: skip
def test_a_row_of_any_shape_becomes_turns(row, expected):
    found = as_instruction(row, "7")
    assert [tuple(turn) for turn in found.messages] == expected
    assert found.sample_id == "7"
    assert found.literal == ({"prompt", "completion"} <= row.keys() and row["prompt"] == "Why?")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "a page"}, reasons.NO_SHAPE),
        ({"prompt": "Why?", "chosen": "So."}, reasons.NO_SHAPE),
        ({"messages": "Why?"}, reasons.NO_TURNS),
        ({"messages": ["Why?", "So."]}, reasons.NO_TURNS),
        ({"messages": []}, reasons.NO_RESPONSE),
        ({"messages": [ASKED]}, reasons.NO_RESPONSE),
        ({"messages": [ASKED, {"role": "narrator", "content": "So."}]}, reasons.BAD_ROLE),
        ({"messages": [ASKED, {"content": "So."}]}, reasons.BAD_ROLE),
        ({"messages": [ASKED, {"role": "assistant", "content": None}]}, reasons.BAD_TEXT),
        ({"messages": [ASKED, PICTURE]}, reasons.BAD_TEXT),
        ({"question": "Why?", "answer": 7}, reasons.BAD_TEXT),
        ({"question": "Why?", "answer": "\ud800"}, reasons.BAD_TEXT),
        ({"question": "Why?", "answer": " \n"}, reasons.EMPTY_RESPONSE),
        ({"question": "", "answer": "So."}, reasons.EMPTY_PROMPT),
        ({"messages": [SAID]}, reasons.EMPTY_PROMPT),
        ({"messages": [ASKED, SAID, {"role": "gpt", "content": ""}]}, reasons.EMPTY_RESPONSE),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_says_why(row, reason):
    assert as_instruction(row, "7") == reason


def test_a_person_reads_the_prompt_and_the_last_response():
    turns = [{"role": "system", "content": "Be."}, ASKED, SAID, ASKED, SAID]
    one = as_instruction({"messages": turns}, "0")
    assert one.prompt == "system: Be.\nuser: Why?\nassistant: So.\nuser: Why?"
    assert one.response == "So."


def saved_as(kind, folder):
    several = rows(6)
    if kind == "jsonl":
        return write_lines(folder / "d.jsonl", several)
    if kind == "json":
        (folder / "d.json").write_text(json.dumps(several, indent=1), encoding="utf-8-sig")
        return folder / "d.json"
    if kind == "lines called json":
        return write_lines(folder / "d.json", several)
    table = pa.Table.from_pylist(several).append_column("weight", pa.array(np.arange(6.0)))
    if kind == "parquet":
        pq.write_table(table, folder / "d.parquet", row_group_size=2)
        return folder / "d.parquet"
    if kind == "folder of parquet":
        pq.write_table(table.slice(0, 4), folder / "a.parquet")
        pq.write_table(table.slice(4), folder / "b.parquet")
        return folder
    datasets = pytest.importorskip("datasets", reason="needs the extra 'datasets'")
    data = datasets.Dataset.from_list(several)
    if kind == "saved data set":
        data.save_to_disk(folder / "d")
        return folder / "d"
    datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(folder / "d")
    return folder / "d"


KINDS = (
    "jsonl", "json", "lines called json", "parquet", "folder of parquet", "saved data set",
    "saved splits",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_samples_and_keeps_rows_as_they_are(kind, tmp_path):
    source = open_instructions(saved_as(kind, tmp_path))
    found = [row for part in range(len(source.parts)) for row in source.rows(part)]
    expected = rows(6)
    assert [{key: row[key] for key in expected[0]} for row in found] == expected
    sizes = [len(list(source.rows(part))) for part in range(len(source.parts))]
    keep = np.split(np.array([True, False, True, True, False, True]), np.cumsum(sizes)[:-1])
    path = tmp_path / "out" / source.kept_name
    path.parent.mkdir()
    source.write(path, keep)
    again = open_instructions(path)
    assert list(again.rows(0)) == [found[place] for place in (0, 2, 3, 5)]
    if kind == "jsonl":
        lines = (tmp_path / "d.jsonl").read_bytes().splitlines(keepends=True)
        assert path.read_bytes() == b"".join(lines[place] for place in (0, 2, 3, 5))
    if kind == "parquet":
        assert pq.read_schema(path) == pq.read_schema(tmp_path / "d.parquet")
    assert [own.name for own in path.parent.iterdir()] == [source.kept_name]


def test_half_a_character_survives_in_a_list(tmp_path):
    several = [{**rows(1)[0], "note": "\ud83d é"}]
    (tmp_path / "d.json").write_text(json.dumps(several))
    source = open_instructions(tmp_path / "d.json")
    source.write(tmp_path / "kept.json", [np.array([True])])
    assert json.loads((tmp_path / "kept.json").read_text()) == several


def census_of(path, ids=None, max_length=64):
    return read_samples(open_instructions(path), Encoder(tokenizer(), max_length), ids)


def test_every_row_is_counted_once(tmp_path):
    several = [{**row, "key": f"k{place}"} for place, row in enumerate(rows(5))]
    several[1]["output"] = " "
    several[2]["key"] = "k0"
    del several[3]["key"]
    path = write_lines(tmp_path / "d.jsonl", several)
    with path.open("ab") as file:
        file.write(b"\n[1]\n" + b'{"instruction": "What", "outp')  # cut off within a line
    read = census_of(path, "key")
    assert read.sequences.ids == ["k0", "k4"]
    assert read.census.dropped == {
        reasons.NO_OBJECT: 2, reasons.EMPTY_RESPONSE: 1, reasons.REPEATED: 1, reasons.NO_ID: 1
    }  # fmt: skip
    assert [row.count for row in read.census.rows()] == [2, 2, 1, 1, 1, 7]
    assert read.census.example(reasons.NO_OBJECT) == "d: 5"
    assert {place.row: why for place, why in read.left_out.items()}[2] == reasons.REPEATED
    assert read.rows == [7]


def test_ids_are_row_numbers_by_file(tmp_path):
    write_lines(tmp_path / "a.jsonl", rows(2))
    write_lines(tmp_path / "b.jsonl", rows(1))
    assert census_of(tmp_path).sequences.ids == ["a/0", "a/1", "b/0"]
    assert census_of(tmp_path / "a.jsonl").sequences.ids == ["0", "1"]


def test_what_lies_behind_the_damage_of_a_file_is_lost_and_counted(tmp_path):
    path = tmp_path / "d.parquet"
    several = [{"question": f"{place}?", "answer": f"{place} " * 40} for place in range(4000)]
    pq.write_table(pa.Table.from_pylist(several), path, row_group_size=1000)
    content = bytearray(path.read_bytes())
    meta = pq.ParquetFile(path).metadata.row_group(2).column(1)
    start = meta.dictionary_page_offset or meta.data_page_offset
    content[start : start + meta.total_compressed_size] = bytes(meta.total_compressed_size)
    path.write_bytes(content)
    read = census_of(path)
    assert 0 < read.census.kept <= 2000
    assert (read.census.total, read.census.lost) == (4000, 4000 - read.census.kept)
    *_, fault, total = read.census.rows("file")
    assert fault.what == "the file is cut short or damaged (1 of 1)"
    assert total.count == 4000
    source = open_instructions(path)
    source.write(tmp_path / "kept.parquet", [np.arange(read.rows[0]) < 5])
    assert pq.read_metadata(tmp_path / "kept.parquet").num_rows == 5


def test_data_of_which_nothing_can_be_used_say_why(tmp_path):
    path = write_lines(tmp_path / "d.jsonl", [{"text": "a page"}] * 3)
    with pytest.raises(
        DataError,
        match=r"no row of .*d\.jsonl can be used: 3 of 3 because its columns are of no shape that "
        r"is known \(the first: d: 0\)\. Expected rows with the columns messages \(role, content\)",
    ):
        census_of(path)
    path.write_text("")
    with pytest.raises(DataError, match="can be used: it holds none"):
        census_of(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", "a,b", r"expected instructions in files of one kind, .*means files \.csv"),
        ("d.json", "[1, 2", "d.json is no JSON"),
        ("d.parquet", "junk", "d.parquet cannot be read as Parquet"),
        ("other", "", "no file or folder .*d.jsonl; check the path"),
    ],
)
def test_what_cannot_be_opened_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        source = open_instructions(tmp_path / (name if "." in name else "d.jsonl"))
        list(source.rows(0))


def test_files_of_other_columns_are_refused(tmp_path):
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"question": ["a"], "reply": ["b"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet has other columns .* reply .* answer"):
        open_instructions(tmp_path)


def test_a_folder_without_instructions_says_what_it_looked_for(tmp_path):
    with pytest.raises(
        DataError, match=r"holds no instructions: no file among 0 ends in \.parquet"
    ):
        open_instructions(tmp_path)


def test_a_bare_hub_id_is_told_how_to_be_named():
    with pytest.raises(DataError, match="hub give hf://datasets/owner/name, with :split"):
        open_instructions("owner/name")


def test_a_hub_data_set_is_named_by_a_url(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="needs the extra 'datasets'")
    asked = []

    def load(name, **how):
        asked.append((name, how))
        return datasets.Dataset.from_list(rows(2))

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_instructions("hf://datasets/owner/name@v2:train_sft")
    how = {"revision": "v2", "split": "train_sft", "streaming": False}
    assert asked == [("owner/name", how)]
    assert [isinstance(as_instruction(row, "0"), Instruction) for row in source.rows(0)] == [
        True
    ] * 2
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(DataError, match="cannot open hf://datasets/owner/name: division"):
        open_instructions("hf://datasets/owner/name")


@pytest.mark.parametrize("name", ["alpaca_en_demo.json", "kto_en_demo.json", "gsm8k_test.jsonl"])
def test_real_instructions_are_read_whole(shared_data, name):
    source = open_instructions(shared_data / "text" / name)
    found = [as_instruction(row, "0") for row in source.rows(0)]
    assert len(found) > 200
    assert {type(one) for one in found} == {Instruction}
