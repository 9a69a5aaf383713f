"""The six sets in the hub's layout, saved, without split, and what is wrong with a copy."""

import datasets
import numpy as np
import pytest
from hub_copies import (
    LAYOUTS,
    NAMES,
    dataset,
    encoded,
    pixels_of,
    rename_column,
    write_copy,
    write_features,
)

from gradmimic.errors import ConfigError, DataError
from gradmimic.reproduce.sets import SETS, load_set


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_copy_in_the_layout_of_the_hub(tmp_path, name):
    found = load_set(name, write_copy(tmp_path, name))
    assert found.classes == NAMES
    for part, split, rows in ((found.train, "train", 12), (found.test, "test", 6)):
        assert part.labels.tolist() == [row % 3 for row in range(rows)]
        assert np.array_equal(part.pictures(8), pixels_of(split, rows))


@pytest.mark.parametrize("name", SETS)
def test_the_hub_is_asked_for_both_parts_of_the_set(monkeypatch, name):
    asked = []

    def load_dataset(hub, *, split, **options):
        asked.append((hub, split))
        source = SETS[name]
        return dataset(split, 6, source.image, source.label)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = load_set(name)
    assert asked == [(SETS[name].hub, "train"), (SETS[name].hub, "test")]
    assert found.train.pictures(4).shape == (6, 3, 4, 4)


def test_what_save_to_disk_wrote(tmp_path):
    both = datasets.DatasetDict(
        {part: dataset(part, rows) for part, rows in (("train", 9), ("test", 3))}
    )
    both.save_to_disk(tmp_path / "both")
    found = load_set("dtd", tmp_path / "both")
    assert (len(found.train), len(found.test)) == (9, 3)
    assert np.array_equal(found.test.pictures(8), pixels_of("test", 3))

    dataset("train", 9).save_to_disk(tmp_path / "one")
    found = load_set("dtd", tmp_path / "one")
    assert (len(found.train), len(found.test)) == (6, 3)


def test_two_thirds_of_each_class_train_where_there_is_no_split(tmp_path):
    dataset("", 30).to_parquet(tmp_path / "images.parquet")
    np.save(tmp_path / "features.npy", np.arange(30.0)[:, None])
    found, again = load_set("dtd", tmp_path), load_set("dtd", tmp_path)
    assert np.bincount(found.train.labels).tolist() == [7, 7, 7]  # of 10
    rows = np.concatenate([found.train.features(), found.test.features()])[:, 0].astype(int)
    assert sorted(rows) == list(range(30))
    assert np.array_equal(rows % 3, np.concatenate([found.train.labels, found.test.labels]))
    pictures = np.concatenate([found.train.pictures(8), found.test.pictures(8)])
    assert np.array_equal(pictures, pixels_of("", 30)[rows])
    assert np.array_equal(found.train.features(), again.train.features())


def test_features_and_labels_alone(tmp_path):
    found = load_set("mine", write_features(tmp_path))
    assert found.classes == ("0", "1", "2")
    assert found.train.features().shape == (60, 4)
    assert found.test.features().dtype == np.float32
    with pytest.raises(DataError, match=r"labels_train.npy has no column of pictures.*--backbone"):
        found.train.pictures(8)


def test_another_column_of_labels(tmp_path):
    data = dataset("train", 9).add_column("said", ["cow", "ant", "bee"] * 3)
    data.to_parquet(tmp_path / "train.parquet")
    dataset("test", 3).to_parquet(tmp_path / "test.parquet")
    found = load_set("pets", tmp_path)
    assert found.train.column("said", found.classes).tolist() == [2, 0, 1] * 3
    with pytest.raises(DataError, match=r"has no column 'human'; it has image, label, said"):
        found.train.column("human", found.classes)


def test_sets_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"no set 'cifar'; the sets are dtd, .*FOLDER"):
        load_set("cifar")
    with pytest.raises(DataError, match=r"no folder .*/none \(from .*\) for the set dtd"):
        load_set("dtd", tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no local copy of the set dtd. Expected what"):
        load_set("dtd", tmp_path)


def test_copies_that_are_damaged(tmp_path):
    copy = write_copy(tmp_path, "cifar100")
    file = copy / "cifar100" / "train-00000-of-00001.parquet"
    whole = file.read_bytes()
    rename_column(file, "fine_label", "other")
    with pytest.raises(DataError, match=r"train has no column of classes .*; it has img, other"):
        load_set("cifar100", copy)
    file.write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet"):
        load_set("cifar100", copy)
    file.unlink()
    with pytest.raises(DataError, match=r"has no Parquet with 'train' in its path"):
        load_set("cifar100", copy)


def test_a_picture_that_cannot_be_decoded_is_an_error(tmp_path):
    good = [{"bytes": encoded(own), "path": None} for own in pixels_of("train", 3)]
    columns = {"image": [*good, {"bytes": b"no picture", "path": None}], "label": [0, 1, 2, 0]}
    for part in ("train", "test"):
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / f"{part}.parquet")
    found = load_set("pets", tmp_path)
    with pytest.raises(DataError, match=r"1 of the 4 pictures of .*, the first in row 3: not"):
        found.train.pictures(8)


def test_features_of_another_number_of_rows(tmp_path):
    copy = write_features(tmp_path)
    np.save(copy / "features_test.npy", np.ones((29, 4)))
    found = load_set("mine", copy)
    with pytest.raises(DataError, match=r"features_test.npy has 29 rows, but .* has 30 labels"):
        found.test.features()
    (copy / "features_train.npy").unlink()
    with pytest.raises(DataError, match=r"no precomputed features. Expected .*features_train.npy"):
        found.train.features()


def test_real_sets(shared_data):
    cifar = load_set("cifar10", shared_data / "cifar10n")
    assert (len(cifar.train), len(cifar.test), len(cifar.classes)) == (30_000, 5_000, 10)
    assert cifar.train.features().shape == (30_000, 384)
    said = cifar.train.column("human_label", cifar.classes)
    assert (said != cifar.train.labels).sum() == 5137
    textures = load_set("dtd", shared_data / "dtd10")
    assert np.bincount(textures.train.labels).tolist() == [80] * 10
    assert textures.test.pictures(16).shape == (400, 3, 16, 16)
