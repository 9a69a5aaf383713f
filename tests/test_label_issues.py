"""Wrong labels are found, suggestions are right, and what cannot be judged is refused or said."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from blobs import make_blobs
from torch import nn
from torch.nn import functional as F

from gradmimic import find_label_issues, mimic_scores
from gradmimic.data.noise import symmetric
from gradmimic.errors import ConfigError, DataError, ReferenceMismatchError
from gradmimic.label_issues import inspect_labels
from gradmimic.label_issues.inputs import as_mask
from gradmimic.run.metrics import detection
from gradmimic.separation import auroc


def noisy_blobs(n=600, rate=0.2):
    x, y = make_blobs(n, seed=0)
    return x, y, symmetric(y, rate, 3, seed=1)


def good_probe():
    """A probe that is right about blobs."""
    probe = nn.Linear(4, 3)
    nn.init.zeros_(probe.bias)
    with torch.no_grad():
        probe.weight.copy_(3 * torch.eye(3, 4))
    return probe


@pytest.fixture(scope="module")
def blobs():
    """Features, true labels, noisy labels, and what was found."""
    x, y, noisy = noisy_blobs()
    return x, y, noisy, inspect_labels(x, noisy)


def test_wrong_labels_are_found_and_mended(blobs):
    _, y, noisy, found = blobs
    wrong = noisy != y
    assert detection(found.mask, wrong)["f1"] > 0.9
    assert (found.suggested == y).mean() > 0.95 > (noisy == y).mean()
    assert found.noise_rate.low <= 0.2 <= found.noise_rate.high
    assert found.noise_rate.value == pytest.approx(0.2, abs=0.04)
    assert found.can_be_trusted
    # right where it says so: what is left of errors among the clean ones is as p_clean expects
    assert (1 - found.p_clean[~found.mask]).mean() == pytest.approx(
        wrong[~found.mask].mean(), abs=0.03
    )


def test_every_part_of_the_result_is_in_the_order_and_type_of_the_data(blobs):
    _, _, noisy, found = blobs
    assert np.array_equal(found.given, noisy)
    assert np.array_equal(np.sort(found.indices), np.flatnonzero(found.mask))
    assert (np.diff(found.p_clean[found.indices]) >= 0).all()  # the worst first
    assert ((found.p_clean >= 0) & (found.p_clean <= 1)).all()
    assert (found.suggested[found.mask] != noisy[found.mask]).all()
    assert np.array_equal(found.suggested[~found.mask], noisy[~found.mask])
    assert found.suggested.dtype == noisy.dtype


def test_the_summary_says_how_many_and_how_sure(blobs):
    found = blobs[3]
    assert found.summary() == (
        f"{found.mask.sum()} of 600 labels ({found.mask.mean():.1%}) look wrong; about "
        f"{found.noise_rate.value:.1%} are, between {found.noise_rate.low:.1%} if errors are "
        f"random and {found.noise_rate.high:.1%} if they confuse similar classes. Labels that "
        f"were made wrong on purpose are told from the given ones with AUROC "
        f"{found.auroc.value:.3f} ({found.auroc.low:.3f} to {found.auroc.high:.3f}), where perfect "
        f"scores would reach {1 - found.noise_rate.value / 2:.3f}."
    )


def test_the_score_is_the_sum_of_mimic_scores_along_the_way_to_the_reference():
    x, _, noisy = noisy_blobs(100)
    reference = good_probe()
    found = inspect_labels(x, noisy, reference=reference)
    length = torch.cat([p.detach().flatten() for p in reference.parameters()]).norm()
    batch, steps, total = (torch.tensor(x), torch.tensor(noisy)), 50, torch.zeros(100)
    for step in range(steps):
        model = nn.Linear(4, 3)
        share = (step + 0.5) / steps
        model.load_state_dict({name: share * p for name, p in reference.state_dict().items()})
        total += mimic_scores(
            model, reference, batch, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")
        )
    assert torch.allclose(total * length / steps, torch.tensor(found.score).float(), atol=0.01)


def test_the_same_seed_gives_the_same_and_torchs_chance_is_left_alone(blobs):
    x, _, noisy, found = blobs
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    again = inspect_labels(x, noisy)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert np.array_equal(again.score, found.score)
    assert np.array_equal(again.p_clean, found.p_clean)
    seeds = [inspect_labels(x, noisy, reference=good_probe(), seed=seed) for seed in (0, 1)]
    assert seeds[0].auroc != seeds[1].auroc  # other canaries


def test_a_mask_or_ranked_indices_as_cleanlab_does(blobs):
    x, _, noisy, found = blobs
    assert np.array_equal(find_label_issues(x, noisy), found.mask)
    for name in ("score", "p_clean"):
        ranked = find_label_issues(x, noisy, reference=good_probe(), return_indices_ranked_by=name)
        judged = inspect_labels(x, noisy, reference=good_probe())
        assert np.array_equal(np.sort(ranked), np.sort(judged.indices))
        assert (np.diff(getattr(judged, name)[ranked]) >= 0).all()


def test_other_rankings_are_refused_before_the_work(blobs):
    x, _, noisy, _ = blobs
    with pytest.raises(ConfigError, match="'self_confidence' is unknown; expected 'score', 'p_cl.*"
                       "Cleanlab's rankings need predicted probabilities"):  # fmt: skip
        find_label_issues(x, noisy, return_indices_ranked_by="self_confidence")
    with pytest.raises(ConfigError, match="'margin' is unknown; expected 'score', 'p_clean' or No"):
        find_label_issues(x, noisy, return_indices_ranked_by="margin")


@pytest.mark.parametrize(
    "kind",
    [
        lambda y: y.astype(np.uint8),
        lambda y: torch.tensor(y),
        lambda y: [("cat", "dog", "newt")[c] for c in y],
        lambda y: np.array([("cat", "dog", "newt")[c] for c in y], dtype=object),
        lambda y: y * 10 - 5,
    ],
)
def test_labels_of_every_kind_come_back_as_they_came(blobs, kind):
    x, _, noisy, _ = blobs
    labels = kind(noisy)
    same = inspect_labels(torch.tensor(x), noisy, reference=good_probe())
    found = inspect_labels(x, labels, reference=good_probe())
    assert np.array_equal(found.mask, same.mask)
    assert np.array_equal(found.suggested, np.asarray(kind(same.suggested)))


def test_trusted_rows_teach_and_are_never_flagged(blobs):
    x, y, noisy, _ = blobs
    trusted = np.arange(600) < 60
    labels = np.where(trusted, y, noisy)
    found = inspect_labels(x, labels, trusted=trusted)
    assert not found.mask[trusted].any()
    assert (found.p_clean[trusted] == 1).all()
    assert np.isnan(found.score[trusted]).all()
    assert detection(found.mask[~trusted], (noisy != y)[~trusted])["f1"] > 0.9
    assert found.summary().startswith(f"{found.mask.sum()} of 540 labels")
    assert np.array_equal(as_mask(np.flatnonzero(trusted).tolist(), 600), trusted)


def test_a_reference_judges_alone(blobs, tmp_path):
    x, y, noisy, _ = blobs
    probe = good_probe()
    found = inspect_labels(x, noisy, reference=probe)
    assert detection(found.mask, noisy != y)["f1"] > 0.9
    # the file of a run: the same probe behind a scaling
    scaled = {"head.weight": probe.weight * 2, "head.bias": probe.bias + probe.weight.sum(1)}
    scaled |= {"scale.mean": torch.ones(1, 4), "scale.spread": torch.tensor(2.0)}
    torch.save({name: tensor.detach() for name, tensor in scaled.items()}, tmp_path / "ref.pt")
    same = inspect_labels(x, noisy, reference=tmp_path / "ref.pt")
    assert np.allclose(same.score, found.score, atol=1e-4)
    # a class that no label has is still a class of the reference
    few = noisy != 1
    assert np.isfinite(inspect_labels(x[few], noisy[few], reference=probe).score).all()


def clouds(classes, n, d, seed=0, spread=1.0):
    """Overlapping clouds in a row: each class is near the next."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    centers = 3 * rng.normal(size=(classes, d))
    return (centers[y] + spread * rng.normal(size=(n, d))).astype(np.float32), y


def test_people_who_take_one_class_for_another_are_found_out():
    x, y = clouds(4, 1500, 6)
    wrong = np.random.default_rng(1).random(1500) < 0.2
    found = inspect_labels(x, np.where(wrong, y ^ 1, y))  # 0 ↔ 1 and 2 ↔ 3
    assert detection(found.mask, wrong)["f1"] > 0.95
    assert found.noise_rate.value == pytest.approx(wrong.mean(), abs=0.03)
    # of two classes only: some trusted samples tell that from classes that overlap
    trusted = np.arange(1500) < 100
    wrong &= (y < 2) & ~trusted
    found = inspect_labels(x, np.where(wrong, y ^ 1, y), trusted=trusted)
    assert detection(found.mask, wrong)["f1"] > 0.95


def test_next_to_nothing_is_flagged_where_classes_overlap_and_nothing_is_wrong():
    x, y = clouds(4, 1500, 6, spread=3.0)
    assert inspect_labels(x, y).mask.mean() < 0.01


def test_many_classes_and_few_samples_of_each():
    x, y = clouds(40, 1200, 20)
    noisy = symmetric(y, 0.2, 40, seed=2)
    found = inspect_labels(x, noisy)
    assert detection(found.mask, noisy != y)["f1"] > 0.9
    assert found.noise_rate.value == pytest.approx(0.2, abs=0.03)


def test_noise_instead_of_features_is_told_by_the_canaries():
    x, y = np.random.default_rng(0).normal(size=(400, 8)), np.arange(400) % 2
    with pytest.warns(
        UserWarning, match="cannot be trusted: .* AUROC 0.*No label is flagged. Pass"
    ):
        found = inspect_labels(x, y)
    assert not found.mask.any()
    assert not found.can_be_trusted
    assert found.summary().startswith("No label of 400 is flagged: the scores cannot tell")
    assert (found.noise_rate.low, found.noise_rate.high) == (0, 1)


@pytest.mark.slow
def test_files_and_small_floats_are_taken_as_they_are(blobs, tmp_path):
    x, _, noisy, found = blobs
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.array_equal(inspect_labels(mapped, noisy).score, found.score)
    exact = inspect_labels(x, noisy, reference=good_probe()).score
    for small in (x.astype(np.float16), torch.tensor(x).half(), torch.tensor(x).bfloat16()):
        close = inspect_labels(small, noisy, reference=good_probe())
        assert np.allclose(close.score, exact, atol=0.2)


def test_the_only_sample_of_a_class_is_not_judged(blobs):
    x, _, noisy, _ = blobs
    names = [*(f"c{c}" for c in noisy[:-1]), "alone"]
    with pytest.warns(UserWarning, match="only one of their class are not judged, .*: 'alone'"):
        found = inspect_labels(x, names)
    assert not found.mask[-1]
    assert np.isnan([found.p_clean[-1], found.score[-1]]).all()
    assert np.isfinite(found.score[:-1]).all()


def broken(change):
    x, _, noisy = noisy_blobs(60)
    return change(x, noisy)


def with_value(x, value):
    x[7, 2] = value
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (with_value(x, np.nan), y), "NaN .* first in row 7, column 2: nan. Leave"),
        (lambda x, y: (with_value(x.astype(float), 1e300), y), "beyond float32, .*row 7, column 2"),
        (lambda x, y: (x[:, 0], y), r"expected features \[n, d\] .* \[60\] .* features come first"),
        (lambda x, y: (x[:, :, None], y), r"shape \[60, 4, 1\] of float32. For images or text"),
        (
            lambda x, y: (x.astype(str), y),
            r"features \[n, d\] of numbers, got shape \[60, 4\] of <U",
        ),
        (lambda x, y: (x[:, :0], y), r"expected features \[n, d\] of numbers, got shape \[60, 0\]"),
        (lambda x, y: (x, y[:-1]), "expected one label per row, got 60 rows and 59"),
        (lambda x, y: (x, np.eye(3)[y]), r"expected labels \[n\], one per sample, got .*\[60, 3\]"),
        (
            lambda x, y: (x, y.astype(float)),
            r"class numbers or names, got float64. .*astype\(int\)",
        ),
        (lambda x, y: (x, [*map(str, y[:-1]), None]), r"of one type, got NoneType \(row 59\), str"),
        (lambda x, y: (x, [*y[:-1], "a"]), r"one type, got int \(row 58\), str \(row 59\). Name"),
        (lambda x, y: (x, y * 0), "all 60 labels are alike, so none can be wrong; expected 2"),
        (lambda x, y: (x[:19], y[:19]), "expected at least 20 samples to judge, got 19"),
        (lambda x, y: (x[:0], y[:0]), "expected at least 20 samples to judge, got 0"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        find_label_issues(*broken(change))


@pytest.mark.parametrize(
    ("trusted", "message"),
    [
        (range(60), "all 60 rows are trusted, so there is nothing to judge. Leave trusted= out"),
        (range(50), "expected at least 20 samples to judge, got 10"),
        ([60], "expected trusted rows from 0 to 59, got 60 to 60"),
        ([-1, 3], "expected trusted rows from 0 to 59, got -1 to 3"),
        ([], r"expected trusted to be a mask \[60\] or row numbers, got shape \[0\] of float64"),
        (np.ones(59, bool), r"a mask \[60\] or row numbers, got shape \[59\] of bool"),
        (np.ones(60), r"a mask \[60\] or row numbers, got shape \[60\] of float64"),
        ([0], "no trusted row is of class 0, [12]: all samples of it would look wrong. Add some"),
        (np.zeros(60, bool), "no trusted row is of class 0, 1, 2: all samples of it would"),
    ],
)
def test_bad_trusted_rows_are_refused(trusted, message):
    x, y, _ = noisy_blobs(60)
    with pytest.raises(DataError, match=message):
        find_label_issues(x, y, trusted=list(trusted) if isinstance(trusted, range) else trusted)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (nn.Linear(5, 3), r"no linear probe of features \[n, 4\]: it holds weight \[3, 5\], bias"),
        (nn.Linear(4, 2), "knows 2 classes, but the labels hold 3. Expected labels 0 to 1, or 2"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), r"is no linear probe .* 1.weight \[3, 4"),
        (
            {"bias": torch.zeros(3)},
            r"is no linear probe .* bias \[3\]. Expected a weight \[classes",
        ),
    ],
)
def test_a_reference_of_another_shape_is_refused(reference, message):
    x, _, noisy = noisy_blobs(60)
    with pytest.raises(ReferenceMismatchError, match=message):
        find_label_issues(x, noisy, reference=reference)


def test_a_reference_and_trusted_rows_at_once_are_refused():
    x, _, noisy = noisy_blobs(60)
    with pytest.raises(ConfigError, match="a reference or trusted rows, got both. .*leave one of"):
        find_label_issues(x, noisy, reference=nn.Linear(4, 3), trusted=[0])


@pytest.mark.slow
def test_intents_of_questions(shared_data):
    data = shared_data / "banking77"
    x = np.load(data / "features_train.npy", mmap_mode="r")
    y = pq.read_table(data / "train.parquet")["label"].to_numpy()
    noisy = symmetric(y, 0.2, 77, seed=0)
    found = inspect_labels(x, noisy)
    assert detection(found.mask, noisy != y)["f1"] > 0.94
    assert found.noise_rate.value == pytest.approx(0.2, abs=0.02)
    assert (found.suggested == y).mean() > 0.93


@pytest.mark.slow
def test_human_labels_of_cifar10(shared_data):
    data = shared_data / "cifar10n"
    x = np.load(data / "features_train.npy", mmap_mode="r")
    y, human = (np.load(data / f"{kind}_labels_train.npy") for kind in ("clean", "human"))
    found = inspect_labels(x, human)
    assert auroc(found.score, human != y) > 0.915
    assert found.noise_rate.low <= (human != y).mean() <= found.noise_rate.high
    assert detection(found.mask, human != y)["f1"] > 0.64
    clean = inspect_labels(x, y)
    assert clean.noise_rate.value <= 0.01
    assert clean.mask.mean() <= 0.01
