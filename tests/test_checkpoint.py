import copy
import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
import zoo
from torch import nn

from gradmimic import GradMimic, load_reference
from gradmimic.direction import choose
from gradmimic.errors import MissingExtraError, ReferenceMismatchError

safetensors = pytest.importorskip("safetensors")
from safetensors.torch import save_file  # noqa: E402

INDEX = "model.safetensors.index.json"


@pytest.fixture
def state():
    return zoo.build("mlp", 3)[1].state_dict()


@pytest.fixture
def reads(monkeypatch):
    """The names of the tensors read out of .safetensors files, in order."""
    names, real = [], safetensors.safe_open

    class Watched:
        def __init__(self, *args, **options):
            self.file = real(*args, **options)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def keys(self):
            return self.file.keys()

        def get_tensor(self, name):
            names.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr(safetensors, "safe_open", Watched)
    return names


def same(tensors, state):
    return tensors.keys() == state.keys() and all(torch.equal(tensors[k], state[k]) for k in state)


def sharded(folder, state, save=save_file, kind="safetensors", stem="model"):
    """Write one shard per layer and the index; where each tensor went."""
    folder.mkdir(exist_ok=True)
    shard = {name: f"{stem}-{int(name[0]) // 2 + 1:05d}-of-00002.{kind}" for name in state}
    for file in set(shard.values()):
        save({name: state[name] for name in state if shard[name] == file}, folder / file)
    index = folder / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shard}))
    return index


def test_every_file_and_folder_gives_the_same_weights(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "b.pth")
    torch.save({"model_state_dict": state}, tmp_path / "c.bin")
    torch.save({"model": state}, tmp_path / "d.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "e.safetensors")
    sources = [*tmp_path.iterdir()]
    for name in ("model.safetensors", "pytorch_model.bin", "last.safetensors", "last.pt"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (save_file if name.endswith("safetensors") else torch.save)(state, folder / name)
        (folder / "config.json").touch()
        sources.append(folder)
    torch.save({"other": torch.ones(1)}, tmp_path / "model-safetensors" / "pytorch_model.bin")
    for index in (
        sharded(tmp_path / "s", state),
        sharded(tmp_path / "t", state, torch.save, "bin", "pytorch_model"),
    ):
        sources += [index, index.parent]
    for source in sources:
        loaded = load_reference(str(source))
        assert same(loaded.tensors, state)
        assert Path(loaded.source).is_relative_to(source)
        assert load_reference(source).source == loaded.source


def test_only_the_scored_tensors_are_read_and_only_once(tmp_path, state, reads):
    save_file(state, tmp_path / "a.safetensors")
    loaded = load_reference(tmp_path / "a.safetensors")
    assert set(loaded.tensors) == set(state)
    assert len(loaded.tensors) == 4
    assert "0.weight" in loaded.tensors
    assert not reads
    model = zoo.build("mlp", 3)[0]
    mimic = GradMimic(model, loaded)
    for dtype in (torch.float32, torch.float64):  # the target is brought along
        model.to(dtype)
        with mimic:
            losses = model(torch.ones(4, 3, dtype=dtype)).square().mean(1)
        mimic.weigh(losses)
    assert sorted(reads) == ["2.bias", "2.weight"]


def test_only_the_shards_that_hold_them_are_read(tmp_path, state, reads):
    index = sharded(tmp_path, state)
    model = zoo.build("mlp", 3)[0]
    matched = load_reference(index).match(model, choose(model))
    assert sorted(reads) == ["2.bias", "2.weight"]
    assert all(torch.equal(matched[name], state[name]) for name in matched)
    index = sharded(tmp_path / "t", state, torch.save, "bin", "pytorch_model")
    (tmp_path / "t" / "pytorch_model-00001-of-00002.bin").write_bytes(b"never opened")
    assert load_reference(index).match(model, choose(model)).keys() == matched.keys()
    with pytest.raises(ReferenceMismatchError, match=r"00001-of-00002.bin is damaged"):
        load_reference(index).match(model, choose(model, "all"))


def test_a_reference_is_independent_of_its_file_once_read(tmp_path, state):
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    model = zoo.build("mlp", 3)[0]
    loaded = load_reference(path)
    matched = loaded.match(model, choose(model))
    with path.open("r+b") as file:  # a training that saves its checkpoint there again
        file.seek(-path.stat().st_size // 2, os.SEEK_END)
        file.write(b"\1" * (path.stat().st_size // 2))
    assert all(torch.equal(matched[name], state[name]) for name in matched)
    path.unlink()
    assert loaded.match(model, choose(model)).keys() == matched.keys()
    with pytest.raises(ReferenceMismatchError, match=r"a.safetensors is damaged or truncated"):
        loaded.match(model, choose(model, "all"))


def test_an_opened_checkpoint_can_be_sent_to_another_process(tmp_path, state):
    loaded = load_reference(sharded(tmp_path, state))
    assert same(pickle.loads(pickle.dumps(loaded)).tensors, state)  # noqa: S301
    assert same(copy.deepcopy(loaded).tensors, state)


class Evil:
    """A pickle that writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Evil(trace)))  # noqa: S301
    assert trace.exists()  # so it would
    trace.unlink()
    torch.save({"weight": Evil(trace)}, tmp_path / "zip.pt")
    torch.save({"weight": Evil(trace)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "raw.bin").write_bytes(pickle.dumps(Evil(trace), protocol=2))
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil(trace), protocol=4))
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    for path in tmp_path.iterdir():
        with pytest.raises(
            ReferenceMismatchError, match="could run code. Save the model's state_d"
        ):
            load_reference(path)
    assert not trace.exists()
    with pytest.raises(ReferenceMismatchError, match=r"more than tensors \(posix.system\)"):
        load_reference(tmp_path / "zip.pt")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_program_is_told_apart_from_weights(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "a.pt")
    with pytest.raises(ReferenceMismatchError, match="a TorchScript program.*Save its state_dict"):
        load_reference(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["a.pt", "old.pt", "a.safetensors"])
@pytest.mark.parametrize("kept", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_says_so_when_it_is_loaded(tmp_path, name, kept):
    state, path = nn.Linear(40, 40).state_dict(), tmp_path / name
    if name == "a.safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "a.pt")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ReferenceMismatchError, match=f"{name} is damaged"):
        load_reference(path)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(
        ReferenceMismatchError, match=r"no reference file at .*none.pt. Expected a "
    ):
        load_reference(tmp_path / "none.pt")
    for name in ("none.pt", "a/none.safetensors", "a/b/c", "./a/b", "a/..b", "gpt2"):  # no hub ids
        with pytest.raises(ReferenceMismatchError, match="There is no reference file at"):
            load_reference(name)
    (tmp_path / "a.onnx").touch()
    with pytest.raises(ReferenceMismatchError, match=r"ends in '\.onnx'; expected a .safetensors"):
        load_reference(tmp_path / "a.onnx")
    torch.save(torch.ones(3), tmp_path / "b.pt")
    with pytest.raises(
        ReferenceMismatchError, match="is Tensor of length .; expected a state dict"
    ):
        load_reference(tmp_path / "b.pt")
    torch.save({"weights": {"a": torch.ones(1)}}, tmp_path / "c.pt")
    with pytest.raises(
        ReferenceMismatchError, match="not tensors under weights.*'model_state_dict"
    ):
        load_reference(tmp_path / "c.pt")
    save_file({}, tmp_path / "d.safetensors")
    with pytest.raises(ReferenceMismatchError, match=r"d.safetensors holds no tensors"):
        load_reference(tmp_path / "d.safetensors")
    with pytest.raises(
        ReferenceMismatchError, match=r"revision='main' came with .*b.pt, which is no"
    ):
        load_reference(tmp_path / "b.pt", revision="main")


def test_a_folder_that_leaves_a_choice_or_none(tmp_path, state):
    with pytest.raises(ReferenceMismatchError, match="holds no weights; expected model.safeten"):
        load_reference(tmp_path)
    for name in ("best.pt", "last.pt"):
        torch.save(state, tmp_path / name)
    with pytest.raises(ReferenceMismatchError, match=r"holds best.pt, last.pt; .*Pass the path of"):
        load_reference(tmp_path)


def test_a_distributed_checkpoint_is_refused_with_the_way_to_convert_it(tmp_path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "trace")))
    (tmp_path / "__0_0.distcp").touch()
    with pytest.raises(ReferenceMismatchError, match=r"could run code.*dcp_to_torch_save\(folder"):
        load_reference(tmp_path)
    assert not (tmp_path / "trace").exists()


def test_a_broken_set_of_shards_is_refused_when_it_is_loaded(tmp_path, state):
    index = sharded(tmp_path, state)
    content = json.loads(index.read_text())
    first, second = sorted(set(content["weight_map"].values()))
    (tmp_path / second).rename(tmp_path / "moved")
    with pytest.raises(ReferenceMismatchError, match=f"{second} is missing .*{INDEX} lists it"):
        load_reference(tmp_path)
    (tmp_path / second).write_bytes((tmp_path / "moved").read_bytes()[:-1])
    with pytest.raises(ReferenceMismatchError, match=f"{second} is damaged or truncated"):
        load_reference(tmp_path)
    (tmp_path / "moved").rename(tmp_path / second)
    content["weight_map"]["2.bias"] = first
    index.write_text(json.dumps(content))
    with pytest.raises(ReferenceMismatchError, match=f"tensors in {first} .* not in there: 2.bias"):
        load_reference(tmp_path)
    for text, said in (
        ("{", "JSONDecodeError"),
        ("[]", "no index of shards: TypeError"),
        ("{}", "KeyError: 'weight_map'"),
        ('{"weight_map": {}}', "names nothing as shards"),
        ('{"weight_map": {"a": 3}}', "names 3 as shards"),
        ('{"weight_map": {"a": ["b"]}}', "unhashable"),
        ('{"weight_map": {"a": "../b.safetensors"}}', r"names '\.\./b.safetensors' as shards"),
        ('{"weight_map": {"a": "b.txt"}}', "names 'b.txt' as shards. Expected the names of"),
    ):
        index.write_text(text)
        with pytest.raises(ReferenceMismatchError, match=said):
            load_reference(index)


def test_a_missing_library_gives_the_pip_command(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").touch()
    for library in ("safetensors", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gradmimic\[safetensors\]'"):
        load_reference(tmp_path / "a.safetensors")
    with pytest.raises(MissingExtraError, match=r"no file or folder a/b.*'gradmimic\[hub\]'"):
        load_reference("a/b")


COMMIT = "0123456789" * 4


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub without a network: one repository, in a folder as the cache has it."""
    library = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)

    class Hub:
        folder = tmp_path / "snapshots" / COMMIT
        online = True
        asked: list = []  # noqa: RUF012

    hub = Hub()
    hub.folder.mkdir(parents=True)
    hub.asked = []

    def list_repo_files(repo, *, revision=None):
        if not hub.online:
            raise ConnectionError("no route")
        if repo != "own/er":
            raise ValueError(f"404 Client Error.\n\nRepository Not Found: {repo}")
        if revision == "none":
            raise ValueError("Invalid rev id: none")
        return [".gitattributes", "onnx/model.onnx", *(path.name for path in hub.folder.iterdir())]

    def hf_hub_download(repo, name, *, revision=None, local_files_only=False):
        assert local_files_only is not hub.online
        hub.asked.append((name, revision))
        if not (hub.folder / name).exists():
            raise FileNotFoundError(f"no entry {name}")
        return str(hub.folder / name)

    def try_to_load_from_cache(repo, name, *, revision=None):
        path = hub.folder / name
        return str(path) if repo == "own/er" and path.exists() else None

    for function in (list_repo_files, hf_hub_download, try_to_load_from_cache):
        monkeypatch.setattr(library, function.__name__, function)
    return hub


def test_a_hub_id_downloads_the_weights_alone_and_prefers_safetensors(hub, state):
    save_file(state, hub.folder / "model.safetensors")
    torch.save(state, hub.folder / "pytorch_model.bin")
    loaded = load_reference("own/er", revision="v1")
    assert same(loaded.tensors, state)
    assert loaded.source == f"own/er at {COMMIT}"
    assert hub.asked == [("model.safetensors", "v1")]
    (hub.folder / "model.safetensors").rename(hub.folder / "open_clip_model.safetensors")
    assert same(load_reference("own/er").tensors, state)
    assert hub.asked[1:] == [("open_clip_model.safetensors", None)]
    (hub.folder / "open_clip_model.safetensors").unlink()
    assert same(load_reference("own/er").tensors, state)


def test_the_hub_is_asked_for_the_needed_shards_of_one_commit(hub, state):
    sharded(hub.folder, state)
    model = zoo.build("mlp", 3)[0]
    loaded = load_reference("own/er")
    assert loaded.tensors.keys() == state.keys()
    assert hub.asked == [(INDEX, None)]
    loaded.match(model, choose(model))
    loaded.match(model, choose(model))
    assert hub.asked[1:] == [("model-00002-of-00002.safetensors", COMMIT)]
    (hub.folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(
        ReferenceMismatchError, match=r"own/er/model-00001-of.* had from the hub: Fi"
    ):
        loaded.match(model, choose(model, "all"))


def test_without_a_network_the_cache_serves(hub, state):
    torch.save(state, hub.folder / "pytorch_model.bin")
    hub.online = False
    assert same(load_reference("own/er").tensors, state)
    with pytest.raises(
        ReferenceMismatchError, match=r"some/body is no file .*ConnectionError: no ro"
    ):
        load_reference("some/body")


def test_a_hub_id_that_is_none(hub, state):
    with pytest.raises(
        ReferenceMismatchError, match=r"404 Client Error. Repository Not Found: no/n"
    ):
        load_reference("no/ne")
    with pytest.raises(ReferenceMismatchError, match=r"own/er at revision 'none' .*Invalid rev id"):
        load_reference("own/er", revision="none")
    with pytest.raises(ReferenceMismatchError, match="The repository own/er holds no weights"):
        load_reference("own/er")
    Path("own").mkdir()
    torch.save(state, "own/er")  # a local path wins, here with a suffix that is none
    with pytest.raises(ReferenceMismatchError, match="own/er ends in ''"):
        load_reference("own/er")
    assert not hub.asked
