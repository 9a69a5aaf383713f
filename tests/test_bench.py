"""What ``gradmimic bench`` measures, what it writes, and that the declared cells hold."""

import copy
import json
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradmimic import GradMimic, mimic_scores
from gradmimic.bench.abilities import ABILITIES, COLUMNS, UNTESTED, abilities_of, table
from gradmimic.bench.clock import interleave
from gradmimic.bench.engines import Job, Row, error, measure
from gradmimic.bench.memory import peak_bytes
from gradmimic.bench.models import CASES
from gradmimic.bench.page import by_model, markdown
from gradmimic.cli import main
from gradmimic.engines import ENGINES
from gradmimic.errors import GradMimicError, ParameterError, UnsupportedOperationError

CPU = torch.device("cpu")


def test_candidates_take_turns_and_the_first_is_the_baseline():
    called = []
    timing = interleave(
        {name: lambda name=name: called.append(name) for name in "abc"}, turns=2, warmup=1
    )
    assert "".join(called) == "abccbaabc"
    assert timing["a"].ratio == 1
    assert all(own.seconds > 0 for own in timing.values())


def test_peak_bytes_are_those_held_at_once():
    def step():
        a = torch.zeros(250_000)
        del a
        b = torch.zeros(250_000)
        c = torch.zeros(500_000)
        return b[0] + c[0]

    assert peak_bytes(step) == pytest.approx(3_000_000, rel=0.01)


def test_peak_bytes_see_the_backward_pass():
    layer = nn.Linear(1000, 1000, bias=False)
    x = torch.randn(2, 1000)
    assert peak_bytes(lambda: layer(x).sum().backward()) >= 4_000_000  # the weight's gradient


@pytest.mark.parametrize("name", CASES)
def test_every_model_gives_one_loss_per_sample_that_depends_on_all_its_parameters(name):
    job = Job(CASES[name], 3, CPU)
    losses = CASES[name].losses(job.model, job.batch)
    assert losses.shape == (3,)
    losses.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in job.model.parameters())


def test_the_rows_hold_what_was_measured():
    rows = list(measure(["mlp"], ["forward", "secant", "oracle"], b=4, turns=2, device=CPU))
    assert [row.engine for row in rows] == ["forward", "secant", "oracle"]
    for row in rows:
        assert row.refused is None
        assert row.scores_time > 0 < row.step_time
        assert 0 < row.scores_memory < row.step_memory
        assert row.plain_seconds > 0
        # weights, gradients and AdamW's two moments at least
        assert row.plain_bytes > 4 * sum(p.nbytes for p in CASES["mlp"].build().parameters())
    forward, secant, oracle = (row.error for row in rows)
    assert max(forward, oracle) < 1e-4 < secant < 3e-2
    assert all(row.error < row.error_bf16 < 0.5 for row in rows)


def test_the_error_is_seen():
    class Wrong(Job):
        def scores(self, engine):
            return super().scores(engine) * (1.5 if engine == "forward" else 1)

    assert error(Wrong(CASES["mlp"], 4, CPU), "forward") == pytest.approx(0.5, rel=1e-3)


def test_a_refusal_is_a_row_that_says_why(monkeypatch):
    class Refusing(ENGINES["forward"]):
        def __enter__(self):
            raise UnsupportedOperationError("It | cannot\npass this.")

    monkeypatch.setitem(ENGINES, "refusing", Refusing)
    rows = list(measure(["mlp"], ["refusing", "oracle"], b=2, turns=1, device=CPU))
    assert [row.refused for row in rows] == ["It | cannot\npass this.", None]
    text = markdown(rows, {"accelerator": "GPU", "versions": {"torch": "2"}})
    assert "| refusing | It \\| cannot pass this. |  |  |  |  |  |" in text
    assert "| refusing | not tested |" in text  # nobody described it
    assert text.endswith("with torch 2, GPU.\n")


def test_wrong_choices_are_refused():
    with pytest.raises(ParameterError, match="model 'gpt' is unknown; expected one of mlp, cnn"):
        list(measure(["gpt"]))
    with pytest.raises(ParameterError, match="batch of 2 or more and 1 turn or more, got 1, 10"):
        list(measure(["mlp"], b=1))


def test_the_command_prints_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    json_path, page_path = tmp_path / "new" / "b.json", tmp_path / "new" / "b.md"
    arguments = ["bench", "--model", "mlp", "--batch-size", "2", "--turns", "1"]
    arguments += ["--json", str(json_path), "--markdown", str(page_path)]
    monkeypatch.setattr(sys, "argv", ["gradmimic", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    printed = capsys.readouterr()
    assert "measuring mlp" in printed.err
    saved = json.loads(json_path.read_text())
    assert saved["abilities"] == table()
    assert [row["engine"] for row in saved["results"]] == list(ENGINES)
    assert saved["machine"]["versions"]["torch"] == torch.__version__
    page = page_path.read_text()
    for engine in ENGINES:
        assert engine in printed.out
        assert page.count(f"| {engine} |") == 2
    rows = [Row(**row) for row in saved["results"]]
    assert page == markdown(rows, saved["machine"])
    assert list(by_model(rows)) == ["mlp"]


def test_every_engine_is_described():
    assert ENGINES.keys() <= ABILITIES.keys()
    for row in table():
        assert all(row.values())
        assert row.keys() == {"engine", *COLUMNS.values()}


# The cells: each is held against what the engine does.
def losses_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 4))
    reference = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 4))
    return model, reference, (torch.randn(12, 3), torch.randint(4, (12,)))


def trained(model, reference, batch, engine, scale=1.0, losses=losses_of):
    mimic = GradMimic(model, reference, params="all", engine=engine)
    with mimic:
        values = losses(model, batch)
    (scale * mimic.weigh(values)).backward()
    return mimic.scores


def relative(scores, expected):
    return ((scores - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_cell_exact(engine, small):
    model, reference, batch = copy.deepcopy(small)
    model, reference, batch = model.double(), reference.double(), (batch[0].double(), batch[1])
    options = {"params": "all", "losses": losses_of}
    expected = mimic_scores(model, reference, batch, engine="oracle", **options)
    scores = mimic_scores(model, reference, batch, engine=engine, **options)
    assert (relative(scores, expected) < 1e-12) == (abilities_of(engine).exact == "yes")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_cell_losses(engine, small):
    def contrastive(model, batch):
        z = F.normalize(model(batch[0]), dim=1)
        return F.cross_entropy(z @ z.T / 0.1, torch.arange(len(z)).roll(1), reduction="none")

    model, reference, batch = small
    expected = mimic_scores(model, reference, batch, contrastive, params="all", engine="oracle")
    works = True
    try:
        scores = mimic_scores(model, reference, batch, contrastive, params="all", engine=engine)
        works = relative(scores, expected) < 1e-2
    except GradMimicError:
        works = False
    assert works == (abilities_of(engine).losses == "any")


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo, of what it traces
@pytest.mark.parametrize("engine", ENGINES)
def test_the_cell_compile(engine, small):
    model, reference, batch = small
    expected = mimic_scores(model, reference, batch, losses_of, params="all", engine="oracle")
    model.compile(backend="aot_eager")
    cell = abilities_of(engine).compile
    if cell == UNTESTED:
        pytest.skip("no claim is made")
    if cell.startswith("no"):
        with pytest.raises(GradMimicError):
            trained(model, reference, batch, engine)
    else:
        assert relative(trained(model, reference, batch, engine), expected) < 1e-2


@pytest.mark.parametrize("engine", ENGINES)
def test_the_cell_amp(engine, small):
    model, reference, batch = small
    if abilities_of(engine).amp == UNTESTED:
        pytest.skip("no claim is made")
    expected = mimic_scores(model, reference, batch, losses_of, params="all", engine="oracle")
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            scores = trained(model, reference, batch, engine, scale=2.0**10)
        assert relative(scores, expected) < (0.2 if "coarse" in abilities_of(engine).amp else 0.05)
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_clock_may_be_another_one():
    ticks = iter(range(100))
    timing = interleave({"a": lambda: None}, turns=3, warmup=1, clock=lambda: float(next(ticks)))
    assert timing["a"] == (1.0, 1.0)
    assert next(ticks) == 7  # a start for each turn, an end for each that counts
