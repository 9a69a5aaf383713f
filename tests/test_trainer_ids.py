"""Ids get through any data set and collator, and no batch or random number is another for it."""

import pickle

import pytest
import torch
from datasets import Dataset, IterableDataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import IterableDataset as Stream
from trainers import MimicTrainer, arguments, better_than, model_of
from transformers import (
    BatchEncoding,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    DefaultDataCollator,
    PreTrainedTokenizerFast,
    Trainer,
)

from gradmimic.errors import DataError, UsageError
from gradmimic.integrations.trainer_ids import IdCollator, take_ids, with_ids

MODEL = model_of("classes")
LENGTHS = [5, 3, 8, 4, 7, 2, 6, 3, 5]
NAMES = [f"row-{i}" for i in range(9)]


def rows(tagged=False):
    """Of unequal lengths, with a column that no model takes."""
    found = []
    for i, n in enumerate(LENGTHS):
        words = [10 * (i % 3) + j for j in range(1, n + 1)]
        labels = [word % 3 for word in words] if tagged else i % 3
        found.append({"input_ids": words, "labels": labels, "text": NAMES[i]})
    return found


def even_rows():
    return [{**row, "input_ids": (2 * row["input_ids"])[:4]} for row in rows()]


def tokenizer():
    words = Tokenizer(WordLevel({"[PAD]": 0, "[MASK]": 1, **{str(i): i for i in range(2, 40)}}))
    names = {"pad_token": "[PAD]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


def loaders(folder, dataset, collator=None, id_column="sample_id", **own):
    own = {"model": MODEL, "args": arguments(folder, **own), "data_collator": collator}
    own |= {"processing_class": tokenizer(), "train_dataset": dataset}
    more = {"reference": better_than(MODEL), "id_column": id_column}
    return Trainer(**own), MimicTrainer(**own, **more)


def batches(trainer, epochs=2):
    """All batches, and the next random numbers after them."""
    torch.manual_seed(0)
    loader = trainer.get_train_dataloader()
    found = [dict(batch) for _ in range(epochs) for batch in loader]
    return found, torch.rand(3)


def ids_seen(folder, dataset, collator=None, **own):
    """The ids of each batch, having compared all else with the plain Trainer."""
    plain, mimic = loaders(folder, dataset, collator, **own)
    column = own.get("id_column", "sample_id")
    (expected, chance), (found, same) = batches(plain), batches(mimic)
    ids = [take_ids(batch, column) for batch in found]
    expected = [{k: v for k, v in batch.items() if k != column} for batch in expected]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(same, chance, rtol=0, atol=0)
    assert mimic.train_dataset is dataset
    return [batch.tolist() if isinstance(batch, torch.Tensor) else batch for batch in ids]


def check(ids, names=None):
    """Both epochs saw every sample once, in another order."""
    flat = [one for batch in ids for one in batch]
    assert sorted(flat[:9]) == sorted(flat[9:]) == sorted(range(9) if names is None else names)
    assert flat[:9] != flat[9:]


def test_rows_of_a_data_set_without_ids_have_their_numbers(tmp_path):
    dataset = Dataset.from_list(rows())
    ids = ids_seen(tmp_path, dataset, DataCollatorWithPadding(tokenizer()))
    check(ids)
    _, mimic = loaders(tmp_path, dataset, DataCollatorWithPadding(tokenizer()))
    for batch in batches(mimic, 1)[0]:
        for row, sample_id in zip(batch["input_ids"].tolist(), batch["sample_id"], strict=True):
            assert [word for word in row if word] == rows()[sample_id]["input_ids"]


@pytest.mark.parametrize("column", ["sample_id", "uid"])
@pytest.mark.parametrize("names", [NAMES, list(range(100, 109))])
@pytest.mark.parametrize("shuffled", [False, True])
def test_ids_of_a_column_go_with_their_rows(tmp_path, column, names, shuffled):
    dataset = Dataset.from_list(rows()).add_column(column, names)
    dataset = dataset.shuffle(seed=1) if shuffled else dataset
    own = {} if column == "sample_id" else {"id_column": column}
    check(ids_seen(tmp_path, dataset, DataCollatorWithPadding(tokenizer()), **own), names)


@pytest.mark.parametrize(
    "collator",
    [
        lambda: DataCollatorForLanguageModeling(tokenizer(), mlm=True),
        lambda: DataCollatorForLanguageModeling(tokenizer(), mlm=False),
        lambda: DataCollatorForTokenClassification(tokenizer()),
    ],
)
def test_ids_pass_collators_that_pad_and_mask(tmp_path, collator):
    kept = ["input_ids", "labels"] if collator().__class__.__name__[-3:] == "ion" else ["input_ids"]
    dataset = Dataset.from_list(rows(tagged=True)).select_columns([*kept, "text"])
    check(ids_seen(tmp_path, dataset, collator()))


@pytest.mark.parametrize("collator", [None, DefaultDataCollator()])
def test_ids_pass_collators_that_stack(tmp_path, collator):
    check(ids_seen(tmp_path, Dataset.from_list(even_rows()), collator))


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance", "sequential"])
def test_samplers_see_the_rows_as_they_are(tmp_path, strategy):
    own = {"train_sampling_strategy": strategy}
    collator = DataCollatorWithPadding(tokenizer())
    ids = ids_seen(tmp_path, Dataset.from_list(rows()), collator, **own)
    assert sorted(one for batch in ids[:5] for one in batch) == list(range(9))


def test_lengths_of_a_column_group_rows(tmp_path):
    dataset = Dataset.from_list(rows()).remove_columns("text")
    dataset = dataset.add_column("length", [1, 9, 1, 9, 1, 9, 1, 9, 1])

    def collator(features):
        return DataCollatorWithPadding(tokenizer())(
            [{k: v for k, v in row.items() if k != "length"} for row in features]
        )

    own = {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
    assert len(ids_seen(tmp_path, dataset, collator, **own)) == 10


def test_ids_come_from_workers_too(tmp_path):
    dataset = Dataset.from_list(rows()).add_column("sample_id", NAMES)
    own = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
    check(ids_seen(tmp_path, dataset, DataCollatorWithPadding(tokenizer()), **own), NAMES)


def test_columns_may_stay_and_the_ids_go_all_the_same(tmp_path):
    dataset = Dataset.from_list(even_rows()).remove_columns("text")
    check(ids_seen(tmp_path, dataset, remove_unused_columns=False))
    named = dataset.add_column("sample_id", list(range(9)))
    _, mimic = loaders(tmp_path, named, lambda rows: {"names": [*rows[0]]})
    mimic.args.remove_unused_columns = False
    assert batches(mimic, 1)[0][0]["names"] == ["input_ids", "labels"]


def test_a_data_set_with_a_transform_has_row_numbers(tmp_path):
    def transform(batch):
        return {"input_ids": [(2 * row)[:4] for row in batch["input_ids"]], "labels": [1] * len(
            batch["input_ids"]
        )}  # fmt: skip

    dataset = Dataset.from_list(rows()).with_transform(transform)
    check(ids_seen(tmp_path, dataset, remove_unused_columns=False))


def test_a_formatted_data_set_stays_formatted(tmp_path):
    dataset = Dataset.from_list(even_rows()).with_format("torch")
    check(ids_seen(tmp_path, dataset))
    assert with_ids(dataset)[0]["sample_id"].tolist() == 0
    assert isinstance(with_ids(dataset)[0]["input_ids"], torch.Tensor)


@pytest.mark.parametrize("kind", [dict, BatchEncoding])
def test_rows_of_a_list_have_their_numbers_or_their_ids(tmp_path, kind):
    plain = [kind(row) for row in even_rows()]
    for row in plain:
        del row["text"]
    check(ids_seen(tmp_path, plain))
    named = [{**row, "sample_id": name} for row, name in zip(plain, NAMES, strict=True)]
    check(ids_seen(tmp_path, named), NAMES)


class Endless(Stream):
    def __init__(self, named):
        self.named = named

    def __iter__(self):
        for row, name in zip(even_rows(), NAMES, strict=True):
            del row["text"]
            yield {**row, "uid": name} if self.named else row


def test_streams_need_a_column_of_ids(tmp_path):
    own = {"max_steps": 4, "id_column": "uid"}
    ids = ids_seen(tmp_path, Endless(True), **own)
    assert ids[0] == ["row-0", "row-1"]
    named = Dataset.from_list(even_rows()).add_column("uid", NAMES).to_iterable_dataset()
    assert ids_seen(tmp_path, named, **own)[1] == ["row-2", "row-3"]
    _, mimic = loaders(tmp_path, Endless(False), max_steps=4)
    with pytest.raises(DataError, match=r"in the column 'sample_id', but a row has \['input_ids'"):
        batches(mimic)
    bare = IterableDataset.from_generator(Endless(False).__iter__)
    _, mimic = loaders(tmp_path, named, max_steps=4)
    with pytest.raises(DataError, match=r"'sample_id', but it has \['input_ids'.*lasting numbers"):
        mimic.get_train_dataloader()
    _, mimic = loaders(tmp_path, bare, max_steps=4)
    with pytest.raises(DataError, match="IterableDataset have no lasting numbers: add a column"):
        batches(mimic)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 3], "1 rows have an id .* that another row has too, such as 3"),
        (["a"] * 9, "8 rows have an id .* such as 'a'.*row numbers are the ids then"),
        ([None, *range(8)], "1 rows have no id in the column 'sample_id'"),
        ([0.5] * 9, "expected integers or strings in the column 'sample_id' of ids, got double"),
    ],
)
def test_ids_that_do_not_tell_samples_apart_are_refused(tmp_path, names, message):
    dataset = Dataset.from_list(even_rows()).add_column("sample_id", names)
    _, mimic = loaders(tmp_path, dataset)
    with pytest.raises(DataError, match=message):
        mimic.get_train_dataloader()
    with pytest.raises(DataError, match=message):
        with_ids(dataset)


def test_a_column_that_is_named_must_be_there(tmp_path):
    _, mimic = loaders(tmp_path, Dataset.from_list(even_rows()), id_column="uid")
    with pytest.raises(DataError, match=r"no column 'uid'; it has \['input_ids', 'labels'"):
        mimic.get_train_dataloader()
    _, mimic = loaders(tmp_path, even_rows(), id_column="uid")
    with pytest.raises(DataError, match=r"in the column 'uid', but a row has \['input_ids'"):
        batches(mimic)


def test_data_without_any_of_the_models_columns_are_refused(tmp_path):
    _, mimic = loaders(tmp_path, Dataset.from_dict({"text": NAMES}))
    with pytest.raises(DataError, match=r"none of the data set's columns \['text'\] is an"):
        mimic.get_train_dataloader()


@pytest.mark.slow
def test_a_trainers_own_sampler_may_look_at_the_data(tmp_path):
    class Weighted(Trainer):
        def get_train_dataloader(self):
            weights = [1.0 + label for label in self.train_dataset["labels"]]
            assert self.train_dataset.column_names == ["input_ids", "labels", "text"]
            assert len(self.train_dataset[:2]["labels"]) == 2
            return torch.utils.data.DataLoader(
                self.train_dataset.select_columns(["input_ids", "labels"]),
                collate_fn=self.data_collator,
                sampler=torch.utils.data.WeightedRandomSampler(weights, 4),
            )

    kind = type("MimicWeighted", (MimicTrainer, Weighted), {})
    dataset = Dataset.from_list(even_rows())
    trainer = kind(
        model=MODEL, args=arguments(tmp_path), train_dataset=dataset, reference=better_than(MODEL)
    )
    with pytest.raises(DataError, match=r"a row has \['in"):  # it dropped the ids itself
        batches(trainer)


def test_a_batch_without_ids_says_what_it_has():
    with pytest.raises(UsageError, match=r"the batch has no 'sample_id'; it has \['x'\]"):
        take_ids({"x": 1})


def test_a_collator_can_be_pickled():
    collator = pickle.loads(pickle.dumps(IdCollator(DefaultDataCollator(), "uid")))  # noqa: S301
    assert collator([{"x": 1.0, "uid": "a"}])["uid"] == ["a"]
