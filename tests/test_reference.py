import pickle

import pytest
import torch
import zoo
from torch import nn

from gradmimic import Reference, load_reference, mimic_scores
from gradmimic.direction import choose
from gradmimic.errors import MissingExtraError, ReferenceMismatchError


def model_and_reference():
    return zoo.build("mlp", 3)


def test_every_source_gives_the_same_weights(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model, reference = model_and_reference()
    state = reference.state_dict()
    torch.save(state, tmp_path / "a.pt")
    torch.save({"state_dict": state}, tmp_path / "b.pth")
    safetensors.save_file(state, tmp_path / "c.safetensors")
    sources = [reference, state, *(tmp_path / n for n in ("a.pt", "b.pth", "c.safetensors"))]
    for source in sources:
        matched = load_reference(source).match(model, choose(model, "all"))
        assert set(matched) == set(state)
        assert all(torch.equal(matched[name], state[name]) for name in state)
    assert load_reference(str(tmp_path / "a.pt")).source.endswith("a.pt")


def test_a_module_is_copied():
    _, reference = model_and_reference()
    loaded = load_reference(reference)
    before = loaded.tensors["0.weight"].clone()
    with torch.no_grad():
        reference[0].weight.zero_()
    assert torch.equal(loaded.tensors["0.weight"], before)
    assert load_reference(loaded) is loaded


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    torch.save({"weight": Evil()}, path)
    with pytest.raises(ReferenceMismatchError, match="could run code"):
        load_reference(path)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ReferenceMismatchError):
        load_reference(tmp_path / "raw.pt")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_truncated_file_says_so(tmp_path, name):
    safetensors = pytest.importorskip("safetensors.torch")
    state = nn.Linear(40, 40).state_dict()
    path = tmp_path / name
    torch.save(state, path) if name == "a.pt" else safetensors.save_file(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ReferenceMismatchError, match="damaged or truncated"):
        load_reference(path)


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(ReferenceMismatchError, match="There is no reference file"):
        load_reference(tmp_path / "none.pt")
    (tmp_path / "a.onnx").touch()
    with pytest.raises(ReferenceMismatchError, match=r"ends in '\.onnx'"):
        load_reference(tmp_path / "a.onnx")
    torch.save(torch.ones(3), tmp_path / "b.pt")
    with pytest.raises(ReferenceMismatchError, match="expected a state dict"):
        load_reference(tmp_path / "b.pt")
    with pytest.raises(ReferenceMismatchError, match="not tensors under epoch"):
        load_reference({"weight": torch.ones(1), "epoch": 3})


def test_missing_surplus_and_misshapen_keys_are_all_named():
    model, reference = model_and_reference()
    state = dict(reference.state_dict())
    del state["2.bias"]
    state["2.weight"] = state["2.weight"][:, :1]
    state["extra.weight"] = torch.ones(1)
    with pytest.raises(ReferenceMismatchError) as error:
        load_reference(state).match(model, choose(model))
    for part in (
        "missing from the reference: 2.bias",
        "unknown to the model: extra.weight",
        "2.weight: model [4, 3], reference [4, 1]",
    ):
        assert part in str(error.value)


def test_the_scored_part_is_enough_and_buffers_are_no_surplus():
    model, reference = zoo.build("cnn-batchnorm-train", 2)
    matched = load_reference(reference).match(model, choose(model))
    part = Reference(matched, "part")
    assert part.match(model, choose(model)).keys() == {"5.weight", "5.bias"}


def test_another_dtype_is_moved_not_refused():
    model, reference = model_and_reference()
    batch, losses = zoo.draw("mlp", 4), zoo.losses_of("mse")
    expected = mimic_scores(model, reference, batch, losses)
    torch.testing.assert_close(
        mimic_scores(model, reference.float(), batch, losses), expected, rtol=1e-5, atol=1e-6
    )


def test_a_missing_library_gives_the_pip_command(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").touch()
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gradmimic\[safetensors\]'"):
        load_reference(tmp_path / "a.safetensors")
