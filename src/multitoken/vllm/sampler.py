"""From a step's logits to its tokens, for all requests at once.

vLLM's logits are flat: a request has a row for its last real token and one for each of its drafts and masks. Here the
rows are arranged in a grid of requests and places. Everything after that is the same few operations for any batch.
Tensors of the vocabulary's size stay on the model's device. Which tokens are confirmed and what is fed next is decided
on the host (`accept.py`). A token is sampled with noise that belongs to its position (`decoding/gumbel.py`), so drafts
can be confirmed by comparing tokens: the text is that of next-token decoding with the same seed, and it has the same
distribution.

Shapes: B requests, W places, N rows, V vocabulary.
"""

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.model_executor.layers.utils import apply_penalties
from vllm.v1.outputs import SamplerOutput
from vllm.v1.sample.logits_processor.builtin import MinTokensLogitsProcessor
from vllm.v1.sample.ops.bad_words import apply_bad_words
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from multitoken.decoding.gumbel import noise_keys, with_noise, with_noise_in_nucleus
from multitoken.decoding.likeliest import argmax, top_and_confidence
from multitoken.decoding.nucleus import nucleus

from .accept import Accepted, Confirmed, Ints, accept, confirm, leading, propose
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
        self._next: list[list[int]] | None = None  # what each request feeds next after its last real token

    def pace(self, pacer: Pacer) -> None:
        """From now on, this pacer limits the masks of verified requests. Until then, they feed as many as they may."""
        self._pacer = pacer

    def draft_with(self, drafts: DraftsInVllm) -> None:
        """From now on, choose the tokens of a block from left to right, with this draft head."""
        self._drafts = drafts

    def take(self) -> list[list[int]] | None:
        """What each request of the step just sampled feeds next after its last real token. None: nothing
        for any request."""
        taken, self._next = self._next, None
        return taken

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
        lengths = step.lengths.astype(np.int64)
        drawn = None
        corrects = self._drafts is not None and _looks_at_scores_only(step.metadata)
        if corrects and not step.metadata.all_greedy:  # the head draws at masks
            drawn = grid.on_device(leading(drafts != mask_id))[grid.owner] >= grid.place
        tokens, scores = self._choose(raw, top, grid, drafts, rows, lengths, step.metadata, drawn)
        chosen, sure = grid.of(tokens, 0), grid.of(confidences, -1.0)
        confirmed = confirm(chosen, drafts, mask_id)
        if corrects:
            self._correct(chosen, sure, raw, confidences, grid, confirmed, rows, lengths, step.metadata)
        accepted = accept(chosen, sure, drafts, mask_id, rows.rules, confirmed)
        most = self._most_masks(step, rows, int((accepted.emitted >= 0).sum()), confirmed)
        self._feed(step, rows, accepted, lengths, most)
        return self._output(step, raw, scores, grid, grid.on_device(accepted.emitted))

    def _alone(self, logits: Tensor, step: Any, rows: Rows) -> SamplerOutput:
        """For a step in which no request fed drafts or masks: plain decoding, at its cost in vLLM. logits [B, V]."""
        lengths = step.lengths.astype(np.int64)
        if step.metadata.all_greedy:  # vLLM's own sampler: our noise and our places are not involved
            output = self._runner.sampler(logits=logits, sampling_metadata=step.metadata)
        else:
            grid, raw = grid_of_one(len(step.names), logits.device), logits.float()
            tokens, scores = self._choose(raw, None, grid, grid.rows[:, :0], rows, lengths, step.metadata, None)
            output = self._output(step, raw, scores, grid, tokens[:, None])
        most = self._most_masks(step, rows, len(step.names))
        if not rows.paced or np.any(most):
            tokens = output.sampled_token_ids.cpu().numpy().astype(np.int64)
            self._feed(step, rows, Accepted.of_one(tokens), lengths, most)
        return output

    def _output(self, step: Any, raw: Tensor, scores: Tensor, grid: Grid, emitted: Tensor) -> SamplerOutput:
        return SamplerOutput(
            sampled_token_ids=emitted.int(),
            logprobs_tensors=self._logprobs(step.metadata, raw, scores, grid, emitted),
        )

    def _correct(
        self,
        chosen: Ints,
        sure: NDArray[np.float32],
        raw: Tensor,
        confidences: Tensor,
        grid: Grid,
        confirmed: Confirmed,
        rows: Rows,
        lengths: Ints,
        metadata: Any,
    ) -> None:
        """Write what the draft head chooses at the masks of good blocks into chosen and sure, both [B, W]."""
        assert self._drafts is not None
        held, good = confirmed.held, confirmed.good
        fed = good > 0
        is_random = fed & False if metadata.all_greedy else fed & (metadata.temperature.cpu().numpy() >= _GREEDY)
        for who, warp in ((fed & ~is_random, None), (is_random, self._warp)):
            who = who.nonzero()[0]
            if not len(who):
                continue
            at = held[who, None] + 1 + np.arange(good[who].max())  # places of the masks
            there = at <= (held + good)[who, None]
            at = np.minimum(at, chosen.shape[1] - 1)
            asked = grid.on_device(who)
            tokens, corrected = self._drafts.draft(
                raw,
                confidences,
                grid.on_device(grid.rows[who[:, None], at]),
                grid.on_device(chosen[who, held[who]]),
                warp=None if warp is None else functools.partial(warp, who=asked, metadata=metadata),
                keys=None
                if warp is None
                else noise_keys(rows.seeds[asked, None], grid.on_device(lengths[who, None] + at)),
            )
            places = np.broadcast_to(who[:, None], at.shape)[there], at[there]
            chosen[places], sure[places] = tokens.cpu().numpy()[there], corrected.cpu().numpy()[there]

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
        drafts: Ints,
        rows: Rows,
        lengths: Ints,
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
        known = top if scores is raw else None
        in_turn = not metadata.no_penalties or metadata.bad_words_token_ids
        if metadata.all_greedy and not in_turn:
            return argmax(scores) if known is None else known, scores
        positions = grid.on_device(lengths)[grid.owner] + grid.place
        if not in_turn:
            return self._draw(scores, known, grid.owner, positions, rows, metadata, drawn), scores
        return self._choose_in_turn(scores.clone(), grid, drafts, rows, positions, metadata)

    def _choose_in_turn(
        self, scores: Tensor, grid: Grid, drafts: Ints, rows: Rows, positions: Tensor, metadata: Any
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
        fed = grid.on_device(drafts)
        of_place, there_at = grid.on_device(grid.rows), grid.on_device(grid.valid)
        for place in range(width):
            at = of_place[:, place]
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
            there = there_at[:, place]
            tokens[at[there]], scores[at[there]] = chosen[there], here[there]
            if place + 1 == width:
                break
            draft = fed[:, place]
            following = torch.where((draft >= 0) & (draft != self._settings.mask_id), draft, chosen)
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

    def _most_masks(self, step: Any, rows: Rows, tokens: int, confirmed: Confirmed | None = None) -> Ints | int:
        """The most masks of each verified request in the next step. tokens: emitted in this step. confirmed: None if no request
        fed more than its last real token."""
        most = 0 if rows.plain else self._settings.k - 1
        if not most or self._pacer is None or not rows.paced:
            return most
        held = good = None
        if confirmed is not None:
            held, good = confirmed.held.tolist(), confirmed.good.tolist()
        return np.array(self._pacer.masks(step.names, tokens, held, good))

    def _feed(self, step: Any, rows: Rows, accepted: Accepted, lengths: Ints, most: Ints | int) -> None:
        """Store for `take` what each request feeds next after its last real token."""
        room = rows.limits - lengths - (accepted.emitted >= 0).sum(1)
        width = self._settings.drafts
        ids, number = propose(accepted.drafts, rows.rules, room, self._settings.mask_id, width, rows.ends, most)
        number = np.where(step.discarded, 0, number)
        self._next = [row[:n] for row, n in zip(ids.tolist(), number.tolist(), strict=True)]

    def _logprobs(self, metadata: Any, raw: Tensor, scores: Tensor, grid: Grid, emitted: Tensor) -> Any:
        """The logprobs of a place come from the row at which its token was chosen."""
        if metadata.max_num_logprobs is None:
            return None
        sampler = self._runner.sampler
        source = raw
        if sampler.logprobs_mode.startswith("processed"):
            source = self._warped(scores, grid.owner, metadata)
        source = source[grid.on_device(grid.rows.flatten())]
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


def _drafts(flat: Tensor, grid: Grid) -> Ints:
    """What each request fed after its last real token, [B, W - 1]; -1 where it fed nothing."""
    behind = grid.valid[:, 1:]
    drafts = np.full(behind.shape, -1)
    drafts[behind] = flat.cpu().numpy()
    return drafts
