"""Processors for one row. Transformers makes some of them for a whole batch; the engine calls them a row at a time."""

import copy

from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from .failures import DecodingError

_STATEFUL = {  # they count on being called once a token, with what was emitted and never with a draft
    SynthIDTextWatermarkLogitsProcessor: "watermarking_config with SynthID",
    UnbatchedClassifierFreeGuidanceLogitsProcessor: "guidance_scale",
}


def of_row(processors: LogitsProcessorList, row: int, rows: int, padding: int) -> LogitsProcessorList:
    """What stands for `processors` in a row of so many, in front of which so much padding is shown."""
    return LogitsProcessorList(_of_row(processor, row, rows, padding) for processor in processors)


def _of_row(processor: LogitsProcessor, row: int, rows: int, padding: int) -> LogitsProcessor:
    for kind, name in _STATEFUL.items():
        if isinstance(processor, kind):
            raise DecodingError(f"{name} is not supported by multi-token decoding; leave it out")
    own = copy.copy(processor)
    if isinstance(own, RepetitionPenaltyLogitsProcessor):
        ignored = own.prompt_ignore_length
        # Padding that stands on the right is shown in front, too.
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
    """The entry, as a part of length 1, of the prompt that the row continues: several rows may continue one."""
    prompt = row * len(of_prompts) // rows
    return of_prompts[prompt : prompt + 1]
