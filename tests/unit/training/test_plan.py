"""A dry run leaves no files, counts what is trained, and reports when memory runs out."""

import io

import pytest
from rich.console import Console

from multitoken.config import make_config
from multitoken.errors import OutputError
from multitoken.training.plan import _STEPS, _affordable_validations, _typical, plan, show
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
    """Files that a dry run leaves behind would be in the way of the run itself."""
    before = sorted(path.name for path in project.iterdir())
    # With fewer free directions, full leaves norms and the output matrix alone: the published method trains everything.
    more = {"free_directions": 1.0} if method == "full" else {"rank": 4}
    found, said = planned(project, method=method, steps=30, head_rank=0, **more)
    assert sorted(path.name for path in project.iterdir()) == before
    assert found.steps == 30 and found.why_not is None
    assert ("teacher's copy" in found.memory) == (method == "full")
    assert found.trainable == found.parameters if method == "full" else 0 < found.trainable < found.parameters
    # AdamW keeps two numbers per parameter, and a step count of 4 bytes for each tensor.
    assert 8 * found.trainable <= found.memory["optimizer"] <= 8 * found.trainable + 4096
    assert found.memory["gradients"] == 4 * found.trainable
    assert f"{found.samples} samples" in said and "used row 60" in said and "It fits" in said
    assert found.seconds_of_responses > 0 and found.seconds > 30 * found.seconds_per_step


def test_full_counts_what_it_trains(project) -> None:
    found, _ = planned(project, method="full", steps=30, head_rank=0)
    assert 0 < found.trainable < found.parameters


@pytest.mark.parametrize(("growth", "mean"), [(1.0, 9.5), (0.5, 12.8), (0.0, 16.0)])
def test_short_blocks_of_the_beginning_count(growth: float, mean: float) -> None:
    """A run whose blocks grow takes half as long as its last step suggests."""
    stream = StreamOptions(seed=0, rows_per_step=4, blocks=8, k_max=16, growth=(1 - 1 / _STEPS) * (growth > 0))
    seconds = [9.9, *(1 + 0.1 * stream.longest(i / _STEPS) for i in range(1, _STEPS))]
    assert stream.longest(1 - 1 / _STEPS) == 16  # peak memory is that of the longest blocks
    assert _typical(seconds, stream, growth) == pytest.approx(1 + 0.1 * mean, abs=0.03)
    assert _typical(seconds[:1], stream, growth) == 0.0 == _typical([], stream, growth)
    assert _typical(seconds[:2], stream, growth) == seconds[1]


def test_minutes_become_steps(project) -> None:
    """Before the first run, nobody knows how many steps fit into a time."""
    found, said = planned(project, method="gated", rank=4, minutes=2)
    assert found.validations == 9 and f"9 of {found.seconds_per_validation:.1f} s" in said, (
        "a validation takes far less than a second here"
    )
    spent = found.steps * found.seconds_per_step + found.validations * found.seconds_per_validation
    assert 120 - found.seconds_per_step <= spent <= 120 and found.tokens > found.steps


def test_minutes_with_validations_every_few_steps(project) -> None:
    found, _ = planned(project, method="gated", rank=4, minutes=2, evaluate_every=50)
    assert found.validations == found.steps // 50 > 0
    each = found.seconds_per_step + found.seconds_per_validation / 50
    assert found.steps == int(120 / each)


@pytest.mark.parametrize(
    ("seconds", "per_validation", "known", "validations"),
    [
        (600, 1, True, 9),
        (600, 20, True, 2),
        (240, 20, True, 1),
        (240, 200, True, 1),
        (240, 0, True, 0),
        (80, 2, False, 3),
    ],
)
def test_validations_take_a_tenth_of_a_run_at_most(
    seconds: float, per_validation: float, known: bool, validations: int
) -> None:
    """The first validation pass is the exception. In a run of 600 s with passes of 20 s, the second is allowed after
    400 s."""
    assert _affordable_validations(seconds, per_validation, known=known) == validations


@pytest.mark.parametrize(
    ("options", "validations"), [({"evaluate_every": 7}, 5), ({"evaluate_every": 6}, 5), ({"validation_share": 0.0}, 0)]
)
def test_validations_are_counted_as_they_will_be_made(project, options, validations: int) -> None:
    """Validation passes take most of a short run's time."""
    found, _ = planned(project, method="gated", rank=4, steps=30, **options)
    assert found.validations == validations and (found.seconds_per_validation > 0) == (validations > 0)


def test_what_does_not_fit_is_said_and_not_raised(project, monkeypatch) -> None:
    """Whether the run fits is the question that a dry run answers."""

    def full(*args, **kwargs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(BlockTrainer, "compute_loss", full)
    found, said = planned(project, steps=30)
    assert found.why_not is not None and "It does not fit: out of memory with batch_size=2" in said


def test_an_output_that_is_there_is_found_before_anything_is_measured(project) -> None:
    """The dry run must refuse such an output, as the run itself does."""
    (project / "adapted").mkdir()
    (project / "adapted" / "mine").touch()
    with pytest.raises(OutputError):
        planned(project, steps=3)
