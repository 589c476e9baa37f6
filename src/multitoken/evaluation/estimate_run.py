"""`multitoken estimate` behind its reading of the data: the model's responses, the estimate, and both in words."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from multitoken.errors import ModelError, UsageError
from multitoken.models.model import Model

from .estimate import EASY, Estimate, check_enough, estimate
from .gain_calibration import load_calibration
from .own_predictions import own_predictions

LONGEST_PROMPT = 1024  # tokens: longer prompts cost memory and hardly change what is foretold


def load_original(path: str, **how: Any) -> Model:
    """A model that was never adapted. how: as for `Model.load`. Raises `ModelError` for one that was: its gain can be measured."""
    model = Model.load(path, **how)
    if model.mtp is not None:
        raise ModelError(
            f"{model.name} is adapted already (k={model.mtp.k}): measure it with multitoken evaluate, or give "
            f"{model.mtp.base_name}, which it was made from"
        )
    return model


def room_for_prompt(model: Model, max_new_tokens: int) -> int:
    """The most tokens that a prompt may have. Raises `UsageError` where the responses would take every position."""
    positions = model.decoder.max_positions
    if max_new_tokens < 2:
        raise UsageError(f"max_new_tokens is {max_new_tokens}; expected at least 2, as the prefill emits the first")
    if positions is None:
        return LONGEST_PROMPT
    if max_new_tokens >= positions:
        raise UsageError(
            f"max_new_tokens is {max_new_tokens}, but the model has {positions} positions for prompt and response "
            f"together; choose --max-new-tokens {max(2, positions // 2)}, for example"
        )
    return min(LONGEST_PROMPT, positions - max_new_tokens)


def estimate_gain(
    model: Model, prompts: Sequence[Sequence[int]], console: Console, *, k: int = 16, max_new_tokens: int = 256
) -> Estimate:
    """What adapting the model to blocks of at most k would gain on prompts like these (token ids), with a bar.

    Raises `DataError` for too few prompts and `UsageError` for a k under 2.
    """
    if k < 2:
        raise UsageError(f"k_max is {k}; expected at least 2 (one next token and one mask)")
    check_enough(len(prompts))
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("the model writes responses", total=None)
        responses = own_predictions(
            model,
            prompts,
            max_new_tokens,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    return estimate(responses, k, load_calibration())


def estimate_table(found: Estimate) -> Table:
    """The numbers: what was found along the responses, and what it foretells."""
    s = found.summary
    table = Table(
        title=f"{s.prompts} prompts, {s.tokens:,} tokens of the model's own greedy responses", show_header=False
    )
    table.add_column()
    table.add_column(justify="right")
    table.add_row("entropy of its next-token predictions", f"{s.entropy:.2f} nats a token")
    table.add_row("probability it gives to what it writes", f"{s.probability:.0%}")
    table.add_row(f"easy tokens (at least {EASY:.0%})", f"{s.easy_share:.0%}")
    table.add_row(f"mean run up to a hard token (at most {found.k})", f"{s.run_length:.1f} tokens")
    table.add_row("expected under Exact 0.5", f"[bold]{found.tokens_per_step:.1f} tokens per step[/bold]")
    table.add_row("95%", _bounds(found))
    return table


def in_words(found: Estimate) -> str:
    """What to expect, what limits it, what it costs, and how far to trust it: a line each."""
    hard = 1 - found.summary.easy_share
    limit = (
        f"{hard:.0%} of the tokens it writes are hard to foresee (it gives them under {EASY:.0%} itself)"
        if hard >= 0.05
        else f"the length of a block, {found.k}: hardly any of the tokens it writes is hard to foresee"
    )
    beyond = " The run length here lies outside theirs." if found.extrapolated else ""
    return (
        f"Expect about {found.tokens_per_step:.1f} tokens per step under Exact 0.5 after adapting well "
        f"(95%: {_bounds(found)}).\n"
        f"What limits it: {limit}.\n"
        "What it costs: with --method gated and Exact nothing in the output; --method full changes the model itself.\n"
        f"How sure that is: calibrated on {found.calibration}, all trained in full.{beyond} A short trial says more: "
        "multitoken adapt, then multitoken evaluate. Tokens per step are not yet time."
    )


def _bounds(found: Estimate) -> str:
    low, high = found.interval
    return f"{low:.1f} to {high:.1f}" + (", the whole block" if high >= found.k else "")
