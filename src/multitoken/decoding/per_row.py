"""Processors and stopping criteria for one row. Some are made for a whole batch, but the engine calls them one row at a time."""

import copy
from typing import Any

from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from .failures import DecodingError

_STATEFUL = {  # they rely on one call per token, with emitted tokens only and never with a draft
    SynthIDTextWatermarkLogitsProcessor: "watermarking_config with SynthID",
    UnbatchedClassifierFreeGuidanceLogitsProcessor: "guidance_scale",
}


def of_row(processors: LogitsProcessorList, row: int, rows: int, padding: int) -> LogitsProcessorList:
    """The equivalent of `processors` for row `row` of `rows`, which is shown with `padding` tokens of padding in front."""
    return LogitsProcessorList(_of_row(processor, row, rows, padding) for processor in processors)


def _of_row(processor: LogitsProcessor, row: int, rows: int, padding: int) -> LogitsProcessor:
    for kind, name in _STATEFUL.items():
        if isinstance(processor, kind):
            raise DecodingError(f"{name} is not supported by multi-token decoding; leave it out")
    own = copy.copy(processor)
    if isinstance(own, RepetitionPenaltyLogitsProcessor):
        ignored = own.prompt_ignore_length
        # Padding on the right is shown in front as well.
        if ignored is not None and not isinstance(ignored, int):
            own.prompt_ignore_length = max(int(ignored[row]), padding)
        return own
    if isinstance(own, EncoderRepetitionPenaltyLogitsProcessor):
        own.encoder_input_ids = _part(own.encoder_input_ids, row, rows)  # pyright: ignore[reportAttributeAccessIssue]
        return own
    if isinstance(own, EncoderNoRepeatNGramLogitsProcessor):
        own.generated_ngrams, own.batch_size = _part(own.generated_ngrams, row, rows), 1
        return own
    if isinstance(own, PrefixConstrainedLogitsProcessor):
        allowed = own._prefix_allowed_tokens_fn
        return PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(row, ids), 1)
    return processor


def _part(of_prompts, row: int, rows: int):
    """The entry of the prompt that the row continues, as a slice of length 1. Several rows may continue one prompt."""
    prompt = row * len(of_prompts) // rows
    return of_prompts[prompt : prompt + 1]


def criteria_of_row(criteria: StoppingCriteriaList, rows: int) -> StoppingCriteriaList:
    """The equivalent of `criteria` for one of `rows` rows."""
    if rows == 1:
        return criteria
    theirs = StoppingCriteriaList()
    for criterion in criteria:
        is_ours = not type(criterion).__module__.startswith("transformers.")
        theirs.append(_OfBatch(criterion, rows) if is_ours else criterion)
    return theirs


class _OfBatch(StoppingCriteria):
    """A user's criterion, which may store a state for every row of its batch (the evaluation harness's does). It is shown this row in
    place of every row, and has its own copy of that state, because rows do not progress equally fast."""

    def __init__(self, criterion: StoppingCriteria, rows: int) -> None:
        self._criterion, self._rows = copy.copy(criterion), rows
        for name, value in list(getattr(criterion, "__dict__", {}).items()):
            if isinstance(value, list | dict | set):
                setattr(self._criterion, name, copy.deepcopy(value))

    def __call__(self, input_ids: Any, scores: Any, **more: Any) -> Any:
        return self._criterion(input_ids.expand(self._rows, -1), scores, **more)
