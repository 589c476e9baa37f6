"""The draft head: it chooses the tokens of a block from left to right.

A pass predicts the positions of a block independently of each other, so the most likely tokens of two positions may
belong to two different sentences. The head is a small recurrent cell. At each position it reads the token chosen at the
previous position and the hidden state at the mask, and it corrects the logits of the position:

    s_j      = tanh(T e(t_{j-1}) + H n(h_j) + b + S s_{j-1})          s_0 = 0
    logits_j = W h_j + W U s_j

t_0 is the token predicted at the anchor, which the masks of the same step have not seen. e is a token's input embedding
and n(h_j) the hidden state at mask j, both scaled to a root mean square of 1. W is the model's own output matrix. T, H
[R, D], S [R, R], b [R] and U [D, R] are trained. (The low-rank bias from the previous token is from arXiv 2607.05147.
The recurrence is ours, see docs/drafts.md.)

Drafts are guesses that the next pass confirms or refuses. The head therefore changes the speed of Exact but never its
output.

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

VERSION = 1  # of the formula above, as given in the `mtp` block of a checkpoint
_CALM = 0.5  # factor for scores with noise, so that one threshold suits greedy and sampled drafts (docs/drafts.md)
_FEW = 16  # number of blocks up to which one thread computes the products at once
CANDIDATES = 32  # tokens per position that may be drafted: the likeliest ones by the logits of the mask alone


class DraftHead(nn.Module):
    """The trained parameters. A new head makes no correction, because U is zero."""

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
        """What the masks contribute to their states: H n(h) + b. hidden [..., D] -> [..., R]"""
        return F.linear(unit(hidden), self.mask, self.bias)

    def states(self, hidden: Tensor, before: Tensor) -> Tensor:
        """All states of blocks whose tokens are known. hidden [N, J, D]: at the masks; before [N, J, D]: the embeddings
        of the tokens before them. -> [N, J, R]"""
        fed = self.inputs(hidden) + F.linear(unit(before), self.token)
        state, states = fed.new_zeros(len(fed), self.rank), []
        for j in range(fed.shape[1]):
            state = self.advance(state, fed[:, j])
            states.append(state)
        return torch.stack(states, 1)

    def advance(self, state: Tensor, fed: Tensor) -> Tensor:
        """The next state. fed: what the mask and the token before it contribute. Both [..., R]"""
        return (fed + F.linear(state, self.state)).tanh()


def unit(vectors: Tensor) -> Tensor:
    """The vectors scaled to a root mean square of 1, because model families use different scales. Float32."""
    vectors = vectors.float()
    return vectors * vectors.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()


def columns(head: DraftHead, model: Any) -> Tensor:
    """W U [V, R], with gradient. The product of a state and a row of it is what the head adds to that token's logit."""
    output = model.get_output_embeddings()
    weights = getattr(output, "weight", None)
    moved = output(head.up.t().to(weights.dtype if isinstance(weights, Tensor) else head.up.dtype))
    bias = getattr(output, "bias", None)
    return (moved if bias is None else moved - bias).t().to(head.up.dtype)


Warp = Callable[[Tensor], Tensor]  # scores [N, C] -> scores after temperature, top-k and top-p


@dataclass(frozen=True)
class Drafts:
    """tokens [N, J] int64 and confidences [N, J], in the order of the positions in the block."""

    tokens: Tensor
    confidences: Tensor


@dataclass(frozen=True)
class _Places:
    """What the choice of the tokens of blocks is computed from, for each position.

    fed [N, J, R]: H n(h) + b. scores and candidates [N, J, C]: the candidates' scores and ids. moves [N, J, C, R]: the
    candidates' rows of W U. Where tokens are drawn, noise [N, J, C] and warp, which is applied before the noise.
    """

    fed: Tensor
    scores: Tensor
    candidates: Tensor
    moves: Tensor
    noise: Tensor | None
    warp: Warp | None

    def drawn_by(self, scores: Tensor, j: int) -> Tensor:
        """The corrected scores [N, C] of position j, after the warp and with the noise, if there is noise."""
        if self.noise is None:
            return scores
        return (scores if self.warp is None else self.warp(scores)) + self.noise[:, j]


class Drafter:
    """A head in use with a model. The two products with the model's own matrices are computed once.

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
        """Choose tokens for the masks of N blocks, position by position.

        hidden [N, J, D]: at the masks; logits [N, J, V]: float32, with the mask token's at -inf; sure [N, J]: the
        probability of the most likely token at each mask; first [N]: the tokens predicted at the anchors. keys [N, J]:
        the keys of the noise of each position. If given, tokens are drawn with that noise from the scores after `warp`.

        A confidence is the probability of the token according to the corrected scores. For a drawn token, these include
        the noise. The confidence then says how far the token is ahead of the next one, not how probable it is.
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
        else:  # the weight of the other tokens, according to the mask alone
            total = scores[..., 0] - sure.log()
            rest = (1 - (scores - total[..., None]).exp().sum(-1)).clamp_min(1e-30).log() + total
            weight = torch.logaddexp(final.logsumexp(-1), rest)
        return Drafts(chosen, (final.amax(-1) - weight).exp())

    def _in_turn(self, places: _Places, first: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [N, J], and the scores [N, J, C] of the candidates in this choice. first [N]: the tokens before."""
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
        """`_in_turn` for few blocks on a CPU. Decoding waits for each call, and numpy's are faster than torch's."""
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
