"""Records -> training and validation samples. Missing responses are written, and what became of the records is counted."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from multitoken.config import AdaptConfig
from multitoken.errors import DataError

from .encoding import Prompt, Sample, encode_record, fingerprint, make_sample
from .responses import Written, is_sampled
from .sources import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEW = 100  # samples; a run on fewer is only a trial
SHORTEST = 2  # tokens: a block predicts at least two

WriteAll = Callable[[list[list[int]]], list[Written]]
"""Prompts -> their responses: `write_missing` with every argument but the prompts filled in."""


@dataclass(frozen=True)
class DataReport:
    """What became of the records."""

    records: int
    written: int
    """Responses that the teacher wrote."""
    unfinished: int
    """Those of them that reached max_new_tokens before they ended."""
    cut: int
    """Responses, from the data or from the teacher, that were longer than max_length allows."""
    too_short: int
    """Records dropped: fewer than two tokens to train on."""
    no_room: int
    """Records dropped: the prompt alone reaches max_length."""
    last_turn_only: int
    """Conversations of which only the last turn is trained on: the chat template renders earlier ones differently."""

    def __str__(self) -> str:
        counts = {
            "responses written by the original model": self.written,
            "of them unfinished at max_new_tokens": self.unfinished,
            "cut at max_length": self.cut,
            f"dropped with fewer than {SHORTEST} tokens to train on": self.too_short,
            "dropped with a prompt that fills max_length": self.no_room,
            "trained on in their last turn only, since the chat template renders earlier turns differently once "
            "others follow": self.last_turn_only,
        }
        return ", ".join([f"{self.records:,} records", *(f"{n:,} {what}" for what, n in counts.items() if n)])


@dataclass(frozen=True)
class PreparedData:
    """Samples in the order of the data. No prompt is in both lists."""

    train: list[Sample]
    validation: list[Sample]
    report: DataReport

    @property
    def written(self) -> int:
        return self.report.written

    def warnings(self, validation_share: float) -> list[str]:
        """What the user should know about the amount of data before a run on it."""
        found: list[str] = []
        if validation_share and not self.validation:
            found.append(
                "the data holds only one prompt, so none is left to validate on: the run can neither report the speed it "
                "reaches nor choose a threshold"
            )
        if (number := len(self.train) + len(self.validation)) < FEW:
            found.append(
                f"fewer than {FEW} samples (found {number}) are enough for a trial only, and other prompts will hardly become "
                "faster; give thousands if you can, prompts alone are enough"
            )
        return found


def prepare_samples(
    records: Iterable[Record],
    tokenizer: "PreTrainedTokenizerBase",
    mask_id: int | None,
    config: AdaptConfig,
    write: WriteAll,
    *,
    eos_ids: Collection[int] = (),
) -> PreparedData:
    """Encode every record, have the teacher write the missing responses, and split into training and validation.

    All records are read before `write` is called (once, if at all), so bad data is reported before the expensive work.
    Raises `DataError` for a record that cannot be used, and when none is left to train on.
    """
    total = no_room = 0
    encoded: list[tuple[str, Sample | Prompt]] = []
    for record in records:
        total += 1
        if config.rewrite_responses:
            record = record.without_response()
        item = encode_record(record, tokenizer, config.max_length, mask_id=mask_id, eos_ids=eos_ids)
        if len(item.prompt_ids) > config.max_length - SHORTEST:
            no_room += 1
        else:
            encoded.append((_name(record, item), item))

    prompts = [list(item.prompt_ids) for _, item in encoded if isinstance(item, Prompt)]
    written = write(prompts) if prompts else []
    responses = iter(written)
    samples = [
        (
            name,
            item
            if isinstance(item, Sample)
            else make_sample(
                item.prompt_ids,
                *next(responses),
                config.max_length,
                sampled=is_sampled(item.prompt_ids, config.responses),
            ),
        )
        for name, item in encoded
    ]

    kept = [(name, sample) for name, sample in samples if _trainable(sample, config.train_on) >= SHORTEST]
    report = DataReport(
        records=total,
        written=len(written),
        unfinished=sum(not ended for _, ended in written),
        cut=sum(not s.ended and len(s.ids) == config.max_length for _, s in samples),
        too_short=len(samples) - len(kept),
        no_room=no_room,
        last_turn_only=sum(s.last_turn_only for _, s in samples),
    )
    if not kept:
        raise DataError(
            f"nothing is left to train on in {config.data}: {report}; "
            f"expected responses of at least {SHORTEST} tokens that fit in max_length={config.max_length}"
        )
    held_out = _held_out({name for name, _ in kept}, config.validation_share)
    train = [sample for name, sample in kept if name not in held_out]
    return PreparedData(train, [sample for name, sample in kept if name in held_out], report)


def _name(record: Record, item: Sample | Prompt) -> str:
    """A name that keeps equal prompts together. A plain text has no prompt, so its name comes from its content."""
    if record.text is not None and isinstance(item, Sample):
        return fingerprint(item.response_ids)
    return fingerprint(item.prompt_ids)


def _trainable(sample: Sample, train_on: str) -> int:
    return sum(end - start for start, end in sample.predictable(train_on))


def _held_out(names: Collection[str], share: float) -> set[str]:
    """The names held out for validation: the first in the order of their hashes, so that the order of the data does not
    matter. At least one, if any are wanted and something is left to train on."""
    if not share or len(names) < 2:
        return set()
    number = min(max(1, round(share * len(names))), len(names) - 1)
    return set(sorted(names)[:number])
