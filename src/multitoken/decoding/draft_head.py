"""The draft head: the tokens of a block are chosen from left to right.

A pass predicts the places of a block independently of each other, so the most likely tokens of two places may belong to two
different sentences. The head is a small recurrent cell. It reads the token chosen at the place before, and the hidden state at
the mask, and moves the logits of the place:

    s_j      = tanh(T e(t_{j-1}) + H n(h_j) + b + S s_{j-1})          s_0 = 0
    logits_j = W h_j + W U s_j

t_0 is the token at the anchor, which the masks of its step have not seen. e is a token's input embedding and n(h_j) the hidden
state at mask j, both scaled to a root mean square of 1; W is the model's own output matrix. T, H [R, D], S [R, R], b [R] and
U [D, R] are trained. (A low-rank bias from the token before: arXiv 2607.05147; the recurrence is ours, see docs/drafts.md.)

Drafts are guesses: the next pass confirms them, so the head changes the speed of Exact and never its output.

Shapes: R rank, D hidden, V vocabulary, N blocks, J masks of a block, C candidates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from .gumbel import gumbel

VERSION = 1  # of the formula above, as the `mtp` block of a checkpoint names it
_CALM = 0.5  # of scores with noise: one threshold then serves greedy and sampled drafts (docs/drafts.md)
_FEW = 16  # blocks whose products one thread does at once
CANDIDATES = 32  # tokens of a place that may be drafted: the likeliest ones by the mask alone


class DraftHead(nn.Module):
    """The trained numbers. Starts as no correction at all: U is zero."""

    def __init__(self, hidden: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.token = nn.Parameter(torch.empty(rank, hidden))  # T
        self.mask = nn.Parameter(torch.empty(rank, hidden))  # H
        self.state = nn.Parameter(torch.empty(rank, rank))  # S
        self.bias = nn.Parameter(torch.zeros(rank))
        self.up = nn.Parameter(torch.zeros(hidden, rank))  # U
        for matrix in (self.token, self.mask, self.state):
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def inputs(self, hidden: Tensor) -> Tensor:
        """What the masks bring to their states: H n(h) + b. hidden [..., D] -> [..., R]"""
        return F.linear(unit(hidden), self.mask, self.bias)

    def states(self, hidden: Tensor, before: Tensor) -> Tensor:
        """All states of blocks whose tokens are known. hidden [N, J, D] at the masks, before [N, J, D]: the embedding of the
        token in front of each. -> [N, J, R]"""
        fed = self.inputs(hidden) + F.linear(unit(before), self.token)
        state, states = fed.new_zeros(len(fed), self.rank), []
        for j in range(fed.shape[1]):
            state = self.advance(state, fed[:, j])
            states.append(state)
        return torch.stack(states, 1)

    def advance(self, state: Tensor, fed: Tensor) -> Tensor:
        """The next state. fed: what mask and token before it bring. Both [..., R]"""
        return (fed + F.linear(state, self.state)).tanh()


def unit(vectors: Tensor) -> Tensor:
    """Scaled to a root mean square of 1, whatever scale a family of models gives them. Float32."""
    vectors = vectors.float()
    return vectors * vectors.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()


def columns(head: DraftHead, model: Any) -> Tensor:
    """W U [V, R], with gradient: a state times a row of it is what the head adds to a token's logit."""
    output = model.get_output_embeddings()
    weights = getattr(output, "weight", None)
    moved = output(head.up.t().to(weights.dtype if isinstance(weights, Tensor) else head.up.dtype))
    bias = getattr(output, "bias", None)
    return (moved if bias is None else moved - bias).t().to(head.up.dtype)


Warp = Callable[[Tensor], Tensor]  # scores [N, C] -> those after temperature, top-k and top-p


@dataclass(frozen=True)
class Drafts:
    """tokens [N, J] int64 and confidences [N, J], in the order of the places."""

    tokens: Tensor
    confidences: Tensor


@dataclass(frozen=True)
class _Places:
    """What the places of blocks bring to the choice of their tokens: H n(h) + b, fed [N, J, R]; the candidates' scores and ids [N, J, C]
    and rows of W U, moves [N, J, C, R]; where tokens are drawn, their noise [N, J, C] and what goes before it."""

    fed: Tensor
    scores: Tensor
    candidates: Tensor
    moves: Tensor
    noise: Tensor | None
    warp: Warp | None

    def drawn_by(self, scores: Tensor, j: int) -> Tensor:
        """Corrected scores [N, C] of place j, with the noise if there is any."""
        if self.noise is None:
            return scores
        return (scores if self.warp is None else self.warp(scores)) + self.noise[:, j]


class Drafter:
    """A head at work in a model: the two products with the model's own matrices are made once.

    tokens [V, R]: T e(t) of every token; columns [V, R]: W U.
    """

    def __init__(self, head: DraftHead, tokens: Tensor, columns: Tensor) -> None:
        self._head = head
        self._tokens, self._columns = tokens, columns
        self._state = head.state.detach().t().contiguous()

    @classmethod
    @torch.no_grad()
    def of(cls, head: DraftHead, model: PreTrainedModel) -> "Drafter":
        embedding: Any = model.get_input_embeddings()
        return cls(head, F.linear(unit(embedding.weight), head.token), columns(head, model).contiguous())

    def draft(
        self,
        hidden: Tensor,
        logits: Tensor,
        sure: Tensor,
        first: Tensor,
        *,
        warp: Warp | None = None,
        keys: Tensor | None = None,
    ) -> Drafts:
        """Tokens for the masks of N blocks, place by place.

        hidden [N, J, D] at the masks; logits [N, J, V] float32, the mask token's at -inf; sure [N, J]: the probability of the
        likeliest token of each; first [N]: the tokens at the anchors. With `keys` [N, J], of the noise of each place, tokens
        are drawn by it from what `warp` makes of the scores.

        A confidence is the probability of the token among the corrected scores. Where it is drawn, these include the noise: the
        confidence says how far the token is ahead of the next one, whatever its own probability.
        """
        scores, candidates = logits.topk(min(CANDIDATES, logits.shape[-1]), -1)  # [N, J, C]
        noise = None
        if keys is not None:
            noise = gumbel(keys.flatten(), candidates.flatten(0, 1)).view(scores.shape).float()
        moves = F.embedding(candidates, self._columns)
        places = _Places(self._head.inputs(hidden), scores, candidates, moves, noise, warp)
        chosen, final = self._few_in_turn(places, first) if self._are_few(places) else self._in_turn(places, first)
        if noise is not None:
            final = final * _CALM
            weight = final.logsumexp(-1)
        else:  # what the tokens that are no candidates weigh, as the mask alone says
            total = scores[..., 0] - sure.log()
            rest = (1 - (scores - total[..., None]).exp().sum(-1)).clamp_min(1e-30).log() + total
            weight = torch.logaddexp(final.logsumexp(-1), rest)
        return Drafts(chosen, (final.amax(-1) - weight).exp())

    def _in_turn(self, places: _Places, first: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [N, J], and the scores [N, J, C] of the candidates that they were chosen by. first [N]: the tokens in front."""
        each = (part.unbind(1) for part in (places.fed, places.scores[..., None], places.moves, places.candidates))
        state, token = self._state.new_zeros(len(first), self._head.rank), first
        tokens, chosen_by = [], []
        for j, (fed, alone, moves, candidates) in enumerate(zip(*each, strict=True)):
            state = torch.addmm(F.embedding(token, self._tokens) + fed, state, self._state).tanh_()
            here = places.drawn_by(torch.baddbmm(alone, moves, state[:, :, None]).squeeze(-1), j)
            token = candidates.gather(-1, here.argmax(-1, keepdim=True)).squeeze(-1)
            tokens.append(token)
            chosen_by.append(here)
        return torch.stack(tokens, 1), torch.stack(chosen_by, 1)

    def _few_in_turn(self, places: _Places, first: Tensor) -> tuple[Tensor, Tensor]:
        """`_in_turn` for few blocks on a CPU. Decoding waits for every call in here, and numpy's are shorter than torch's."""
        parts = (self._tokens, self._state, places.fed, places.scores, places.moves, places.candidates)
        by_token, by_state, fed, alone, moves, candidates = (part.detach().numpy() for part in parts)
        rows, tokens, chosen_by = np.arange(len(first)), np.empty(fed.shape[:2], np.int64), np.empty_like(alone)
        state, token = np.zeros_like(fed[:, 0]), first.numpy()
        for j in range(fed.shape[1]):
            state = np.tanh(by_token[token] + fed[:, j] + state @ by_state)
            here = alone[:, j] + (moves[:, j] @ state[:, :, None])[..., 0]
            if places.noise is not None:
                here = places.drawn_by(torch.from_numpy(here), j).numpy()
            tokens[:, j] = token = candidates[rows, j, here.argmax(-1)]
            chosen_by[:, j] = here
        return torch.from_numpy(tokens), torch.from_numpy(chosen_by)

    def _are_few(self, places: _Places) -> bool:
        fed = places.fed
        return fed.device.type == "cpu" and fed.dtype == self._tokens.dtype == torch.float32 and len(fed) <= _FEW
