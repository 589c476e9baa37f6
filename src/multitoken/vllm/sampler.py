"""From a step's logits to its tokens, for all requests at once.

vLLM's logits are flat: a request has a row for its last real token and one for each of its drafts and masks. Here the
rows are arranged in a grid of requests and places. Everything after that is the same few tensor operations for any
batch. A token is sampled with noise that belongs to its position (`decoding/gumbel.py`), so drafts can be confirmed by
comparing tokens: the text is that of next-token decoding with the same seed, and it has the same distribution.

Shapes: B requests, W places, N rows, V vocabulary.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.utils import apply_penalties
from vllm.v1.outputs import SamplerOutput
from vllm.v1.sample.logits_processor.builtin import MinTokensLogitsProcessor
from vllm.v1.sample.ops.bad_words import apply_bad_words
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from multitoken.decoding.gumbel import noise_keys, with_noise, with_noise_in_nucleus
from multitoken.decoding.likeliest import argmax, top_and_confidence
from multitoken.decoding.nucleus import nucleus

from .accept import Accepted, Confirmed, accept, confirm, propose
from .drafts import DraftsInVllm
from .grid import Grid, grid_of, grid_of_one
from .pacing import Pacer
from .private import step_of
from .requests import Requests, Rows
from .settings import Settings

_GREEDY = 1e-5  # vLLM's own limit: lower temperatures are greedy


class Sampler:
    """Replaces the sampling of the model runner, and decides what is fed next."""

    def __init__(self, runner: Any, settings: Settings) -> None:
        self._runner = runner
        self._settings = settings
        self._requests = Requests(settings, runner.model_config.seed, runner.device)
        self._pacer: Pacer | None = None
        self._drafts: DraftsInVllm | None = None
        self._next: tuple[Tensor, Tensor] | None = None  # ids [B, drafts], and how many of them [B] are fed

    def pace(self, pacer: Pacer) -> None:
        """From now on, this pacer limits the masks of verified requests. Until then, they feed as many as they may."""
        self._pacer = pacer

    def draft_with(self, drafts: DraftsInVllm) -> None:
        """From now on, choose the tokens of a block from left to right, with this draft head."""
        self._drafts = drafts

    def take(self) -> list[list[int]] | None:
        """What each request of the step just sampled feeds next after its last real token. None: nothing
        for any request."""
        if self._next is None:
            return None
        ids, number = self._next
        self._next = None
        return [row[:n] for row, n in zip(ids.tolist(), number.tolist(), strict=True)]

    @torch.inference_mode()
    def __call__(self, logits: Tensor, metadata: Any) -> SamplerOutput:
        """logits [N, V]. metadata: vLLM's SpecDecodeMetadata, None if no request fed drafts."""
        step, mask_id = step_of(self._runner), self._settings.mask_id
        rows = self._requests.rows(step.names, step.states)
        if self._pacer is not None:
            self._pacer.clock(step.names)
        if mask_id < logits.shape[-1]:  # the mask id of a gated model may be beyond the vocabulary
            logits[:, mask_id] = -torch.inf
        if metadata is None:
            return self._alone(logits, step, rows)
        grid = grid_of(metadata.num_draft_tokens, logits.device)
        raw = logits.float()
        top, confidences = top_and_confidence(raw)
        drafts = _drafts(metadata.draft_token_ids, grid)
        lengths = self._lengths(step)
        drawn = None
        corrects = self._drafts is not None and _looks_at_scores_only(step.metadata)
        if corrects:
            drawn = (drafts != mask_id).long().cumprod(1).sum(1)[grid.owner] >= grid.place  # the head draws at masks
        tokens, scores = self._choose(raw, top, grid, drafts, rows, lengths, step.metadata, drawn)
        chosen, sure = grid.of(tokens, 0), grid.of(confidences, -1.0)
        confirmed = confirm(chosen, drafts, mask_id)
        if corrects:
            self._correct(chosen, sure, raw, confidences, grid, confirmed, rows, lengths, step.metadata)
        accepted = accept(chosen, sure, drafts, mask_id, rows.rules, confirmed)
        self._hand_over(step, rows, accepted.emitted, lengths, accepted)
        return self._output(step, raw, scores, grid, accepted.emitted)

    def _alone(self, logits: Tensor, step: Any, rows: Rows) -> SamplerOutput:
        """For a step in which no request fed drafts or masks: plain decoding, at its cost in vLLM. logits [B, V]."""
        if step.metadata.all_greedy:  # vLLM's own sampler: our noise and our places are not involved
            plain = self._runner.sampler(logits=logits, sampling_metadata=step.metadata)
            self._hand_over(step, rows, plain.sampled_token_ids)
            return plain
        grid, raw = grid_of_one(len(step.names), logits.device), logits.float()
        none, lengths = grid.rows[:, :0], self._lengths(step)
        tokens, scores = self._choose(raw, None, grid, none, rows, lengths, step.metadata, None)
        self._hand_over(step, rows, tokens[:, None], lengths)
        return self._output(step, raw, scores, grid, tokens[:, None])

    def _output(self, step: Any, raw: Tensor, scores: Tensor, grid: Grid, emitted: Tensor) -> SamplerOutput:
        return SamplerOutput(
            sampled_token_ids=emitted.int(),
            logprobs_tensors=self._logprobs(step.metadata, raw, scores, grid, emitted),
        )

    def _correct(
        self,
        chosen: Tensor,
        sure: Tensor,
        raw: Tensor,
        confidences: Tensor,
        grid: Grid,
        confirmed: Confirmed,
        rows: Rows,
        lengths: Tensor,
        metadata: Any,
    ) -> None:
        """Write what the draft head chooses at the masks of good blocks into chosen and sure, both [B, W]."""
        assert self._drafts is not None
        _, held, good = confirmed
        fed = good > 0
        is_random = fed & False if metadata.all_greedy else fed & (metadata.temperature >= _GREEDY)
        for who, warp in ((fed & ~is_random, None), (is_random, self._warp)):
            who = who.nonzero()[:, 0]
            if not len(who):
                continue
            at = held[who, None] + 1 + torch.arange(int(good[who].max()), device=raw.device)  # places of the masks
            there = at <= (held + good)[who, None]
            at = at.clamp(max=chosen.shape[1] - 1)
            tokens, corrected = self._drafts.draft(
                raw,
                confidences,
                grid.rows[who[:, None], at],
                chosen[who].gather(1, held[who, None])[:, 0],
                warp=None if warp is None else functools.partial(warp, who=who, metadata=metadata),
                keys=None if warp is None else noise_keys(rows.seeds[who, None], lengths[who, None] + at),
            )
            places = who[:, None].expand_as(at)[there], at[there]
            chosen[places], sure[places] = tokens[there], corrected[there].to(sure.dtype)

    @staticmethod
    def _warp(scores: Tensor, *, who: Tensor, metadata: Any) -> Tensor:
        """Scores [N, C] after the temperature, top-k and top-p of these N requests."""
        scores = scores / metadata.temperature[who, None]
        top_p = None if metadata.top_p is None else metadata.top_p[who]
        if _by_nucleus(scores, metadata):
            return scores if top_p is None else nucleus(scores, top_p)
        return apply_top_k_top_p(scores, metadata.top_k[who].clamp(max=scores.shape[-1]), top_p)

    def _warped(self, scores: Tensor, owner: Tensor, metadata: Any) -> Tensor:
        """Scores [N, V] after the temperature, top-k and top-p of the requests that sample."""
        if metadata.all_greedy:
            return scores
        at = (metadata.temperature[owner] >= _GREEDY).nonzero()[:, 0]
        return scores.index_copy(0, at, self._warp(scores[at], who=owner[at], metadata=metadata))

    def _choose(
        self,
        raw: Tensor,
        top: Tensor | None,
        grid: Grid,
        drafts: Tensor,
        rows: Rows,
        lengths: Tensor,
        metadata: Any,
        drawn: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(tokens [N], the scores [N, V] that they were chosen from). top [N]: the likeliest tokens of raw, if known.
        drawn [N]: where a request that samples draws; None: everywhere."""
        scores = raw
        if metadata.allowed_token_ids_mask is not None:
            scores = scores.masked_fill(metadata.allowed_token_ids_mask[: len(grid.counts)][grid.owner], -torch.inf)
        for processor in metadata.logitsprocs.non_argmax_invariant:
            if isinstance(processor, MinTokensLogitsProcessor) and processor.min_toks:
                scores = scores.clone() if scores is raw else scores
                scores = processor.apply_with_spec_decode(scores, grid.counts)
        positions = lengths[grid.owner] + grid.place
        if metadata.no_penalties and not metadata.bad_words_token_ids:
            known = top if scores is raw else None
            return self._draw(scores, known, grid.owner, positions, rows, metadata, drawn), scores
        return self._choose_in_turn(scores.clone(), grid, drafts, rows, positions, metadata)

    def _choose_in_turn(
        self, scores: Tensor, grid: Grid, drafts: Tensor, rows: Rows, positions: Tensor, metadata: Any
    ) -> tuple[Tensor, Tensor]:
        """Choose place by place: penalties and bad words depend on the tokens before, this step's own included."""
        tokens = scores.new_zeros(len(scores), dtype=torch.int64)
        before = [list(ids) for ids in metadata.output_token_ids]
        vocabulary, requests, width = scores.shape[-1], *grid.rows.shape
        longest = max(map(len, before), default=0)
        shown = torch.tensor(
            [ids + [vocabulary] * (longest + width - len(ids)) for ids in before], device=scores.device
        )
        everyone = torch.arange(requests, device=scores.device)
        for place in range(width):
            at = grid.rows[:, place]
            here = scores[at]
            if not metadata.no_penalties:
                here = apply_penalties(
                    here,
                    metadata.prompt_token_ids,
                    shown,
                    metadata.presence_penalties,
                    metadata.frequency_penalties,
                    metadata.repetition_penalties,
                )
            if metadata.bad_words_token_ids:
                apply_bad_words(here, metadata.bad_words_token_ids, before)
            chosen = self._draw(here, None, everyone, positions[at], rows, metadata)
            there = grid.valid[:, place]
            tokens[at[there]], scores[at[there]] = chosen[there], here[there]
            if place + 1 == width:
                break
            fed = drafts[:, place]
            following = torch.where((fed >= 0) & (fed != self._settings.mask_id), fed, chosen)
            shown[:, longest + place] = following
            if metadata.bad_words_token_ids:
                for ids, token in zip(before, following.tolist(), strict=True):
                    ids.append(token)
        return tokens, scores

    def _draw(
        self,
        scores: Tensor,
        top: Tensor | None,
        owner: Tensor,
        positions: Tensor,
        rows: Rows,
        metadata: Any,
        drawn: Tensor | None = None,
    ) -> Tensor:
        """Tokens for rows of these owners: drawn where the request samples and `drawn` [N] is true, elsewhere the
        likeliest (`top`, if known)."""
        if metadata.all_random and drawn is None:
            return self._with_noise(scores, owner, positions, rows, metadata)
        greedy = argmax(scores) if top is None else top
        if metadata.all_greedy:
            return greedy
        samples = metadata.temperature[owner] >= _GREEDY
        at = (samples if drawn is None else samples & drawn).nonzero()[:, 0]
        if not len(at):
            return greedy
        return greedy.index_copy(0, at, self._with_noise(scores[at], owner[at], positions[at], rows, metadata))

    def _with_noise(self, scores: Tensor, who: Tensor, positions: Tensor, rows: Rows, metadata: Any) -> Tensor:
        """A token drawn at each of these positions [N] of these requests [N]."""
        keys = noise_keys(rows.seeds[who], positions)
        if metadata.top_p is not None and _by_nucleus(scores, metadata):
            return with_noise_in_nucleus(scores / metadata.temperature[who, None], metadata.top_p[who], keys)
        return with_noise(self._warp(scores, who=who, metadata=metadata), keys)

    def _lengths(self, step: Any) -> Tensor:
        return torch.from_numpy(step.lengths).to(self._runner.device, torch.int64)

    def _hand_over(
        self, step: Any, rows: Rows, emitted: Tensor, lengths: Tensor | None = None, accepted: Accepted | None = None
    ) -> None:
        """Store for `take` what each request feeds next after its last real token. lengths: if already known. accepted:
        None if no request fed more than that token."""
        most: Any = 0 if rows.plain else self._settings.k - 1
        if most and self._pacer is not None and rows.paced:
            held = good = None
            tokens = len(step.names)
            if accepted is not None:
                _, held, good = accepted.blocks.tolist()
                tokens = int((emitted >= 0).sum())
            numbers = self._pacer.masks(step.names, tokens, held, good)
            most = torch.tensor(numbers, device=emitted.device) if any(numbers) else 0
        if isinstance(most, int) and not most and rows.paced and accepted is None:
            return  # no drafts and no masks for any request: plain decoding
        accepted = accepted or Accepted.of_one(emitted)
        lengths = self._lengths(step) if lengths is None else lengths
        room = rows.limits - lengths - (emitted >= 0).sum(1)
        width = self._settings.drafts
        ids, number = propose(accepted.drafts, rows.rules, room, self._settings.mask_id, width, rows.ends, most)
        number = number.masked_fill(torch.from_numpy(step.discarded).to(number.device), 0)
        self._next = ids, number

    def _logprobs(self, metadata: Any, raw: Tensor, scores: Tensor, grid: Grid, emitted: Tensor) -> Any:
        """The logprobs of a place come from the row at which its token was chosen."""
        if metadata.max_num_logprobs is None:
            return None
        sampler = self._runner.sampler
        source = raw
        if sampler.logprobs_mode.startswith("processed"):
            source = self._warped(scores, grid.owner, metadata)
        source = source[grid.rows.flatten()]
        if sampler.logprobs_mode.endswith("logprobs"):
            source = sampler.compute_logprobs(source)
        return sampler.gather_logprobs(source, metadata.max_num_logprobs, emitted.clamp(min=0).flatten())


def _by_nucleus(scores: Tensor, metadata: Any) -> bool:
    """Whether `decoding/nucleus.py` applies top-p. vLLM's own functions are used for top-k and on accelerators."""
    return metadata.top_k is None and scores.device.type == "cpu"


def _looks_at_scores_only(metadata: Any) -> bool:
    """Whether no request's options depend on token ids. If they do, places are drafted independently of each other."""
    if any(getattr(processor, "min_toks", None) for processor in metadata.logitsprocs.non_argmax_invariant):
        return False  # EOS is forbidden
    return metadata.no_penalties and not metadata.bad_words_token_ids and metadata.allowed_token_ids_mask is None


def _drafts(flat: Tensor, grid: Grid) -> Tensor:
    """What each request fed after its last real token, [B, W - 1]; -1 where it fed nothing."""
    behind = grid.valid[:, 1:]
    drafts = torch.full(behind.shape, -1, dtype=torch.int64, device=flat.device)
    drafts[behind] = flat.long()
    return drafts
