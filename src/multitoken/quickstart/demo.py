"""`multitoken demo`: watch a small model race, adapt it from scratch, and see what it gained and what it cost.

The demo trains a gated adapter, which loses nothing under Exact. ConfAdapt, the decoding policy of the paper, is
measured for comparison.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from transformers.utils import logging as transformers_logging

from multitoken.checkpoints.atomic import check_output, disk_errors, write_text
from multitoken.config import AdaptConfig, make_config
from multitoken.decoding import ConfAdapt, Exact, NextToken, Policy
from multitoken.errors import OutputError
from multitoken.evaluation.measure import FILES, measure, publish
from multitoken.evaluation.rows import Row
from multitoken.models.model import Model
from multitoken.training.adapt import adapt

from .adapt_base import recipe
from .corpus import examples
from .embedded import checkpoint, embedded_task
from .race import race

ADAPT_MINUTES = 4.0
PROMPTS = 700
QUESTIONS_OF_A_FAST_ONE = 8
# Written as people write them; none is in the training text.
RACE_PROMPTS = (
    "Please count from 12 to 60.",
    "Repeat 'red apple' 8 times.",
    "Ada has 48 shells. She finds 37 shells in the attic. She gives 4 shells to each of 6 friends. How many shells does Ada have now?",
)
POLICIES: tuple[Policy, ...] = (Exact(0.5), *(ConfAdapt(threshold) for threshold in (0.99, 0.95, 0.9, 0.8)))


@dataclass(frozen=True)
class DemoOptions:
    """fast: show the embedded adapted checkpoint instead of adapting. questions: per model and policy."""

    output: Path = Path("demo-output")
    fast: bool = False
    minutes: float = ADAPT_MINUTES
    questions: int = 30


def run_demo(options: DemoOptions, console: Console) -> list[Row]:
    """Run the parts of the demo, one heading each. Returns the rows of `results.json`."""
    # Both raise for a wrong number, before anything is shown or written.
    task = embedded_task("word-problems", options.questions)
    config = _config(options)
    headings = iter(range(1, 6))
    if _check(options):
        console.print(f"Replacing the earlier demo in {options.output}.", markup=False, soft_wrap=True)
    transformers_logging.disable_progress_bar()  # a progress bar for 56 small tensors is useless
    console.rule(f"{next(headings)}  The embedded base model")
    base = _load("base")
    millions = base.hf.num_parameters() / 1e6
    console.print(f"{millions:.1f} M parameters, {type(base.hf).__name__}, trained by this package's own script.")

    console.rule(f"{next(headings)}  The race: one model, three ways to decode")
    gated = _load("gated")
    runners: dict[str, tuple[Model, Policy]] = {
        "original, next token": (base, NextToken()),
        "gated, Exact 0.5": (gated, Exact(0.5)),
        "gated, ConfAdapt 0.9": (gated, ConfAdapt(0.9)),
    }
    entries = race(runners, RACE_PROMPTS, console, max_new_tokens=200)

    if options.fast:
        how = "with the embedded gated adapter"
    else:
        console.rule(f"{next(headings)}  Adapting the base model from scratch: {options.minutes:g} minutes")
        gated = _adapt(config, console)
        how = f"with a gated adapter trained here in {options.minutes:g} minutes"

    console.rule(f"{next(headings)}  What it gained and what it cost")
    rows = measure(
        {"original": base, "gated": gated},
        task,
        POLICIES,
        console,
    )

    console.rule(f"{next(headings)}  Results")
    publish(
        options.output,
        rows,
        console,
        title="multitoken demo",
        summary=(
            f"A small language model {how}, on {options.questions} arithmetic word problems that it has never seen."
        ),
        race=entries,
        adapted=how,
    )
    return rows


def _load(name: str) -> Model:
    """Load in float32, so that outputs can be compared token by token."""
    return Model.load(checkpoint(name), dtype="float32")


def _check(options: DemoOptions) -> bool:
    """The demo overwrites its own earlier results without asking, and nothing else. Returns whether there are any."""
    ours = {*FILES, "adapted", "problems.jsonl", "adapted.training", "adapted.logs"}
    foreign = [p.name for p in options.output.iterdir() if p.name not in ours] if options.output.is_dir() else []
    if foreign:
        raise OutputError(
            f"{options.output} holds {', '.join(sorted(foreign)[:3])}, which the demo did not write; choose another --output"
        )
    if not options.output.is_dir():
        check_output(options.output, overwrite=False)
    with disk_errors(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
    return any(options.output.iterdir())


def _config(options: DemoOptions) -> AdaptConfig:
    return make_config(
        demo_recipe(),
        model=checkpoint("base"),
        data=options.output / "problems.jsonl",
        output=options.output / "adapted",
        minutes=options.minutes,
        overwrite=True,
    )


def _adapt(config: AdaptConfig, console: Console) -> Model:
    """Adapt from prompts only: problems that are neither in the base model's training text nor in the test."""
    prompts = (example.prompt for example in examples("word-problems", "adapt", PROMPTS))
    write_text(config.data, "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    adapt(config=config, console=console)
    return Model.load(config.output)


def demo_recipe() -> dict[str, object]:
    """The recipe of the embedded adapter, changed for a training of minutes. Blocks are shorter, because minutes are
    too few to learn the positions beyond (docs/ablations.md). The rank is smaller. The learning rate is a little
    higher, because it falls to zero sooner. The demo decodes greedily, so all responses are greedy."""
    return {
        **recipe("gated"),
        "k_max": 8,
        "rank": 128,
        "learning_rate": 6e-3,
        "responses": "greedy",
        "temperature": 1.0,
        "join_share": 0.0,
    }
