"""The table of docs/launchers.md, and the tests that stand behind each of its cells."""

import importlib

import pytest
from conftest import ROOT

RANKS = "test_distributed.test_two_ranks_are_one_process_on_the_whole_batch"
LOOPS, HERE, COMPILE, ENGINES = "test_loops", "test_launchers", "test_compile", "test_engines"
NOT_HERE = "needs a GPU"

# row: (head, its test), (all parameters, its test); a case of TRAININGS follows a colon
TABLE = {
    "DDP": (("works", f"{RANKS}:plain"), ("works", f"{RANKS}:all parameters")),
    "DDP, `find_unused_parameters` or `static_graph`": (
        ("works", f"{RANKS}:static graph"),
        ("works", f"{RANKS}:unused, all parameters"),
    ),
    "DDP, ranks with fewer batches (`Join`)": (
        ("works", f"{RANKS}:joined"),
        ("works", f"{RANKS}:joined, all parameters"),
    ),
    "gradient accumulation, with and without `no_sync`": (
        ("works", f"{RANKS}:accumulation"),
        ("works", f"{RANKS}:accumulation, all parameters"),
    ),
    "FSDP2 (`fully_shard`)": (
        ("works", f"{HERE}.test_fsdp2_gives_what_one_process_gives"),
        ("refused, but by `secant`", f"{HERE}.test_what_fsdp2_cannot_do_is_refused"),
    ),
    "`torch.compile`": (
        ("works", f"{COMPILE}.test_a_compiled_models_head_scores_exactly"),
        (
            "works; refused under `forward`",
            f"{COMPILE}.test_ghost_scores_and_trains_compiled_code_exactly",
        ),
    ),
    "`torch.compile` with DDP, either way round": (
        (
            "works",
            f"{HERE}.test_accelerate_and_compilers_on_two_ranks_give_what_one_process_gives",
        ),
        ("refused", f"{COMPILE}.test_scores_through_compiled_code_are_refused"),
    ),
    "Accelerate": (
        ("works", f"{LOOPS}.test_accelerate_prepares_the_model_and_takes_the_gradient"),
        ("works", f"{LOOPS}.test_accelerate_prepares_the_model_and_takes_the_gradient"),
    ),
    "bf16 and fp16 autocast, `GradScaler`": (
        ("works", f"{LOOPS}.test_autocast_and_a_gradient_scaler"),
        ("works", f"{LOOPS}.test_autocast_and_a_gradient_scaler"),
    ),
    "`channels_last`": (
        ("works", f"{LOOPS}.test_channels_last_gives_the_same_step"),
        (
            "works, but `group_norm` under `forward` is refused",
            f"{LOOPS}.test_group_norm_in_channels_last_is_refused_by_forward_alone",
        ),
    ),
    "checkpointing, non-reentrant": (
        ("works", f"{LOOPS}.test_a_checkpointed_trunk_gives_the_same_step"),
        (
            "refused by torch, in `backward()`",
            f"{ENGINES}.test_a_scored_module_under_checkpointing_never_trains_on_wrong_gradients",
        ),
    ),
    "checkpointing, reentrant": (
        ("works", f"{LOOPS}.test_a_checkpointed_trunk_gives_the_same_step"),
        (
            "refused",
            ENGINES
            + ".test_a_scored_module_under_reentrant_checkpointing_is_an_error_not_a_wrong_score",
        ),
    ),
    "CUDA graph captured by hand": (
        ("refused", f"{LOOPS}.test_a_cuda_graph_under_capture_is_refused"),
        ("refused", f"{LOOPS}.test_a_cuda_graph_under_capture_is_refused"),
    ),
    "`DataParallel`, FSDP1": (
        ("refused", f"{LOOPS}.test_wrappers_that_hide_the_head_are_refused"),
        ("refused", f"{LOOPS}.test_wrappers_that_hide_the_head_are_refused"),
    ),
    'GPUs: NCCL, `mode="reduce-overhead"`': (
        ("not tested", NOT_HERE),
        ("not tested", NOT_HERE),
    ),
}


def test_the_page_says_what_is_tested():
    page = (ROOT / "docs" / "launchers.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    said = {name: (head, everything) for name, head, everything in rows[2:]}
    assert said == {name: (head[0], everything[0]) for name, (head, everything) in TABLE.items()}


@pytest.mark.parametrize("row", TABLE)
def test_every_cell_has_its_test(row):
    for said, where in TABLE[row]:
        if said == "not tested":
            continue
        test, _, case = where.partition(":")
        module, _, name = test.partition(".")
        tests = importlib.import_module(module)
        assert callable(getattr(tests, name))
        assert not case or case in tests.TRAININGS
