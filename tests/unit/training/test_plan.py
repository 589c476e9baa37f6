"""A dry run keeps nothing, counts what trains, and says so where memory runs out."""

import io

import pytest
from rich.console import Console

from multitoken.config import make_config
from multitoken.errors import OutputError
from multitoken.training.plan import _STEPS, _affordable_looks, _typical, plan, show
from multitoken.training.stream import StreamOptions
from multitoken.training.trainer import BlockTrainer
from tests.unit.training.project import PROMPTS, make_project


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path, PROMPTS)


def planned(project, **options):
    given = {
        "batch_size": 2,
        "gradient_accumulation": 2,
        "blocks_per_row": 3,
        "k_max": 4,
        "max_new_tokens": 12,
        "optimizer": "adamw",
    }
    given |= {"model": project / "base", "data": project / "data.jsonl", "output": project / "adapted"}
    config = make_config(**(given | options))
    console = Console(file=io.StringIO(), width=200)
    found = plan(config, console)
    show(found, config, console)
    return found, console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("method", ["full", "lora", "gated"])
def test_counts_and_keeps_nothing(project, method: str) -> None:
    """What a plan leaves behind would stand in the way of the run itself."""
    before = sorted(path.name for path in project.iterdir())
    found, said = planned(project, method=method, steps=30, head_rank=0, **({} if method == "full" else {"rank": 4}))
    assert sorted(path.name for path in project.iterdir()) == before
    assert found.steps == 30 and found.why_not is None
    assert ("teacher's copy" in found.memory) == (method == "full")
    assert found.trainable == found.parameters if method == "full" else 0 < found.trainable < found.parameters
    # AdamW keeps two numbers a parameter, and a step count of 4 bytes for each tensor.
    assert 8 * found.trainable <= found.memory["optimizer"] <= 8 * found.trainable + 4096
    assert found.memory["gradients"] == 4 * found.trainable
    assert f"{found.samples} samples" in said and "took row 60" in said and "It fits" in said
    assert found.seconds_of_responses > 0 and found.seconds > 30 * found.seconds_per_step


@pytest.mark.parametrize(("growth", "mean"), [(1.0, 9.5), (0.5, 12.8), (0.0, 16.0)])
def test_short_blocks_of_the_beginning_count(growth: float, mean: float) -> None:
    """A run whose blocks grow takes half as long as its last step says."""
    stream = StreamOptions(seed=0, rows_per_step=4, blocks=8, k_max=16, growth=(1 - 1 / _STEPS) * (growth > 0))
    seconds = [9.9, *(1 + 0.1 * stream.longest(i / _STEPS) for i in range(1, _STEPS))]
    assert stream.longest(1 - 1 / _STEPS) == 16  # memory is that of the longest
    assert _typical(seconds, stream, growth) == pytest.approx(1 + 0.1 * mean, abs=0.03)
    assert _typical(seconds[:1], stream, growth) == 0.0 == _typical([], stream, growth)
    assert _typical(seconds[:2], stream, growth) == seconds[1]


def test_minutes_become_steps(project) -> None:
    """Nobody thinks in steps before the first run."""
    found, said = planned(project, method="gated", rank=4, minutes=2)
    assert found.looks == 9 and f"9 of {found.seconds_per_look:.1f} s" in said, (
        "a look takes far less than a second here"
    )
    spent = found.steps * found.seconds_per_step + found.looks * found.seconds_per_look
    assert 120 - found.seconds_per_step <= spent <= 120 and found.tokens > found.steps


def test_minutes_with_looks_every_few_steps(project) -> None:
    found, _ = planned(project, method="gated", rank=4, minutes=2, evaluate_every=50)
    assert found.looks == found.steps // 50 > 0
    each = found.seconds_per_step + found.seconds_per_look / 50
    assert found.steps == int(120 / each)


@pytest.mark.parametrize(
    ("seconds", "per_look", "known", "looks"),
    [
        (600, 1, True, 9),
        (600, 20, True, 2),
        (240, 20, True, 1),
        (240, 200, True, 1),
        (240, 0, True, 0),
        (80, 2, False, 3),
    ],
)
def test_looks_take_a_tenth_of_a_run_at_most(seconds: float, per_look: float, known: bool, looks: int) -> None:
    """But for the first. 600 s and looks of 20: the second one may be once 400 s are over."""
    assert _affordable_looks(seconds, per_look, known=known) == looks


@pytest.mark.parametrize(
    ("options", "looks"), [({"evaluate_every": 7}, 5), ({"evaluate_every": 6}, 5), ({"validation_share": 0.0}, 0)]
)
def test_looks_are_counted_as_they_will_be_made(project, options, looks: int) -> None:
    """They take most of a short run's time."""
    found, _ = planned(project, method="gated", rank=4, steps=30, **options)
    assert found.looks == looks and (found.seconds_per_look > 0) == (looks > 0)


def test_what_does_not_fit_is_said_and_not_raised(project, monkeypatch) -> None:
    """That is the question a dry run was asked."""

    def full(*args, **kwargs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(BlockTrainer, "compute_loss", full)
    found, said = planned(project, steps=30)
    assert found.why_not is not None and "It does not fit: out of memory with batch_size=2" in said


def test_an_output_that_is_there_is_found_before_anything_is_measured(project) -> None:
    """As the run itself would."""
    (project / "adapted").mkdir()
    (project / "adapted" / "mine").touch()
    with pytest.raises(OutputError):
        planned(project, steps=3)
