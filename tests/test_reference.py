import copy
from collections import OrderedDict
from contextlib import nullcontext

import pytest
import torch
import zoo
from torch import nn
from torch.optim.swa_utils import AveragedModel

from gradmimic import GradMimic, Reference, load_reference, mimic_scores
from gradmimic.direction import choose
from gradmimic.errors import ReferenceMismatchError


def model_and_reference():
    return zoo.build("mlp", 3)


def test_a_module_is_copied():
    _, reference = model_and_reference()
    loaded = load_reference(reference)
    before = loaded.tensors["0.weight"].clone()
    with torch.no_grad():
        reference[0].weight.zero_()
    assert torch.equal(loaded.tensors["0.weight"], before)
    assert load_reference(loaded) is loaded


def test_what_is_no_reference():
    with pytest.raises(ReferenceMismatchError, match="not tensors under epoch"):
        load_reference({"weight": torch.ones(1), "epoch": 3})
    with pytest.raises(ReferenceMismatchError, match="The reference is a NoneType. Expected a mod"):
        load_reference(None)
    for source in (nn.Linear(1, 1), Reference({}, "nothing")):
        with pytest.raises(ReferenceMismatchError, match=r"Only a repository on the hub.* has rev"):
            load_reference(source, revision="main")


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


def test_integers_and_values_that_are_not_there_are_refused():
    model, reference = model_and_reference()
    state = dict(reference.state_dict())
    state["2.weight"] = state["2.weight"].to(torch.int8)
    state["2.bias"] = state["2.bias"].to("meta")
    with pytest.raises(
        ReferenceMismatchError, match="of another kind: 2.weight.*int8.*2.bias.*met"
    ):
        load_reference(state).match(model, choose(model))


def named(prefix, module):
    """The module under a name: what a wrapper makes of it."""
    *outer, last = prefix.removesuffix(".").split(".")
    inner = nn.Sequential(OrderedDict({last: module}))
    return named(".".join(outer), inner) if outer else inner


@pytest.mark.parametrize("of_model", ["", "module.", "_orig_mod.", "model.module."])
@pytest.mark.parametrize("of_reference", ["module._orig_mod.", "model.", "net.", "student.net."])
def test_names_that_differ_by_a_prefix_are_matched_and_reported_once(of_model, of_reference):
    model, reference = model_and_reference()
    outer = named(of_model, model) if of_model else model
    loaded = load_reference(named(of_reference, reference))
    for params in ("*2.*", "all"):  # the second time nothing new is there to tell
        subset = choose(outer, params)
        told = pytest.warns(UserWarning, match=rf"matched '{of_reference}[02]\.weight' as")
        with told if params == "*2.*" else nullcontext():
            matched = loaded.match(outer, subset)
        assert {name.removeprefix(of_model) for name in matched} == {
            name for name in reference.state_dict() if params == "all" or name.startswith("2.")
        }
        for name, tensor in matched.items():
            assert torch.equal(tensor, reference.state_dict()[name.removeprefix(of_model)])
        loaded.match(outer, subset)  # silent, or the warning would be an error


def test_the_report_says_both_names_and_the_prefix():
    model, reference = model_and_reference()
    text = r"module Sequential.*matched 'module.2.weight' as '2.weight' \(prefix 'module.'\)"
    with pytest.warns(UserWarning, match=text):
        load_reference(named("module.", reference)).match(model, choose(model))


def test_inner_wrappers_and_the_counter_of_an_average_are_no_obstacle():
    model, reference = zoo.build("transformer", 4)
    state = {
        name.replace("layer.", "layer._orig_mod."): tensor
        for name, tensor in AveragedModel(reference).state_dict().items()
    }
    assert {"n_averaged", "module.layer._orig_mod.norm1.weight"} < state.keys()
    subset = choose(model, ["layer.norm1.*", "head.*"])
    with pytest.warns(UserWarning, match=r"'module.layer._orig_mod.norm1.weight' as 'layer.norm1"):
        matched = load_reference(state).match(model, subset)
    assert all(torch.equal(matched[name], reference.state_dict()[name]) for name in matched)


def test_a_compiled_model_takes_a_plain_reference_and_the_other_way_round():
    model, reference = model_and_reference()
    compiled = torch.compile(reference, backend="eager")
    with pytest.warns(UserWarning, match=r"\(prefix '_orig_mod.'\)"):
        there = load_reference(compiled).match(model, choose(model))
    model = torch.compile(model, backend="eager")
    with pytest.warns(UserWarning, match=r"\(prefix '' for '_orig_mod.'\)"):
        back = load_reference(reference).match(model, choose(model))
    for name in ("2.weight", "2.bias"):
        assert torch.equal(there[name], back["_orig_mod." + name])


def test_a_part_of_the_model_is_enough_wherever_it_belongs():
    model = named("net.", zoo.TiedDecoder())
    head, trunk = nn.Linear(6, 6), zoo.TiedDecoder()
    with pytest.warns(UserWarning, match=r"'weight' as 'net.trunk.weight' \(prefix '' for 'net.tr"):
        matched = load_reference(head).match(model, choose(model, "net.trunk.*"))
    assert torch.equal(matched["net.trunk.bias"], head.bias)
    part = {"wte.weight": trunk.wte.weight}  # the scored head's other name
    with pytest.warns(UserWarning, match="'wte.weight' as 'net.wte.weight'"):
        matched = load_reference(part).match(model, choose(model, "net.lm_head.*"))
    assert torch.equal(matched["net.lm_head.weight"], trunk.wte.weight)


def test_exact_names_win_and_what_can_be_read_in_two_ways_is_not_guessed():
    fc, other = torch.ones(2, 2), torch.zeros(2, 2)
    model = nn.Sequential(OrderedDict(fc=nn.Linear(2, 2, bias=False)))
    bigger = nn.ModuleDict({"fc": nn.Linear(2, 2, False), "module": nn.Linear(2, 2, False)})
    both = {"module.weight": other, "fc.weight": fc}
    assert torch.equal(load_reference(both).match(bigger, choose(bigger, "fc.*"))["fc.weight"], fc)
    for state in (
        {"student.fc.weight": fc, "teacher.fc.weight": other},
        {"module.fc.weight": fc, "_orig_mod.fc.weight": other},
    ):
        with pytest.raises(ReferenceMismatchError) as error:
            load_reference(state).match(model, choose(model))
        assert f"unknown to the model: {', '.join(state)}" in str(error.value)
        assert "missing from the reference: fc.weight" in str(error.value)


def test_one_renaming_goes_for_all_keys_and_keeps_the_model_s_names_apart():
    fc, inner = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    model = nn.ModuleDict({"fc": fc, "model": nn.ModuleDict({"fc": inner})})
    reference = load_reference(named("module.", copy.deepcopy(model)))
    with pytest.warns(UserWarning, match=r"'module.fc.weight' as 'fc.weight' \(prefix 'module.'\)"):
        matched = reference.match(model, choose(model, "fc.*"))
    assert torch.equal(matched["fc.weight"], fc.weight)
    with pytest.raises(ReferenceMismatchError, match="unknown to the model: _orig_mod.fc.weight"):
        load_reference({"_orig_mod.fc.weight": fc.weight}).match(model, choose(model, "model.fc.*"))
    mixed = {"net.fc.weight": fc.weight, "model.fc.weight": fc.weight}
    with pytest.raises(ReferenceMismatchError, match="unknown to the model: "):
        load_reference(mixed).match(model, choose(model, "fc.*"))


def test_what_a_renaming_leaves_over_is_listed_alone():
    model, reference = model_and_reference()
    state = {**named("module.", reference).state_dict(), "module.projector.weight": torch.ones(1)}
    del state["module.2.bias"]
    text = (
        r"missing from the reference: 2.bias; unknown to the model: module.projector.weight; "
        r"matched 'module.2.weight' as '2.weight' \(prefix 'module.'\)"
    )
    with pytest.raises(ReferenceMismatchError, match=text):
        load_reference(state).match(model, choose(model))


def test_a_move_of_the_model_warns_no_second_time_while_training():
    model, reference = model_and_reference()
    model, reference = model.float(), named("module.", reference.float())
    with pytest.warns(UserWarning, match="prefix 'module.'"):
        mimic = GradMimic(model, reference)
    for dtype in (torch.float32, torch.float64, torch.float32):  # any warning is an error here
        model.to(dtype)
        with mimic:
            losses = model(torch.ones(4, 3, dtype=dtype)).square().mean(1)
        mimic.weigh(losses).backward()
