"""Packed blocks with recurrent layers: every block starts from the state at its anchor.

The real tokens of a sample run through a mixer once. Some kinds of mixer can leave the state after any of their tokens
(`Kind.leaves_any`). They leave the states at the anchors. For any other kind, the tokens are run in short pieces, and
the states at the borders from which blocks start are kept. A block starts from the last border before it, and the real
tokens between the border and the block are run again before the block's own tokens. All blocks of all rows are
therefore one call, wherever their anchors are. Gradients pass through both the states and the repeated inputs.

    sample    a b c d e f g h          borders with pieces of 3: after c, after f
    block     (anchor e) e M M         runs [d | e M M] from the state after c

Samples that share a row are run as separate rows, so that none sees another's state.

Shapes: B rows, T real tokens, M block tokens, D hidden, Q samples, P pieces.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from .blocks import REAL, BlockBatch
from .mixer_state import Parts, State
from .mixers import Mixer, Mixers, cache_inputs

# Tokens in a piece. Long pieces need few calls, which run one after another. With short pieces, few tokens are run
# again before each block. On a CPU the tokens are the main cost, on an accelerator the calls.
PIECE_ON_CPU, PIECE = 16, 64


class BlockStates:
    """The layout of one batch. anchors_repeated=False: blocks are fed without their anchors, as masks alone.

    A pass feeds [real tokens, blocks], or real tokens alone. The inputs of the last pass over real tokens alone are
    kept. Once the layout is closed, passes feed blocks alone.
    """

    def __init__(self, batch: BlockBatch, mixers: Mixers, *, anchors_repeated: bool = True) -> None:
        self._real, self._closed = batch.real, False
        self._starts: list[Parts] = [{} for _ in mixers.all]  # [B * N, ...] states, one for each block
        self._kept: list[Tensor | None] = [None for _ in mixers.all]  # [B, T, D] inputs, of passes that feed no blocks
        device, rows = batch.ids.device, batch.ids.shape[0]
        self._direct = mixers.leave_any
        self._piece = 1 if self._direct else PIECE_ON_CPU if device.type == "cpu" else PIECE
        positions = batch.positions[:, : self._real]
        is_real = batch.block[:, : self._real] == REAL
        is_first = (positions == 0) & is_real
        is_first[:, 0] = True
        self._sample = is_first.flatten().cumsum(0).view(rows, -1) - 1  # [B, T]
        self._position = torch.where(is_real, positions, 0)  # the values at padding are never read
        starts = is_first.flatten().nonzero()[:, 0]
        lengths = torch.bincount(self._sample[is_real], minlength=len(starts)).clamp_min(1)
        # A sample is padded at the end with its last token. In a causal layer, its own outputs do not see the padding.
        longest = int(lengths.max())
        if longest == 1 or longest % self._piece == 1:
            longest += 1  # the kernels for a single token write in place, which breaks the gradients
        at = torch.arange(longest, device=device)[None]
        self._tokens = starts[:, None] + torch.minimum(at, lengths[:, None] - 1)  # [Q, longest]
        self._source = torch.where(at < lengths[:, None], self._tokens, -1)
        fed = batch.place >= (0 if anchors_repeated else 1)
        self._anchors: tuple[Tensor, Tensor] | None = None  # [B * N]: a block's sample, and its tokens before the block
        self._place_blocks(batch, fed, anchors_repeated)

    def _place_blocks(self, batch: BlockBatch, fed: Tensor, anchors_repeated: bool) -> None:
        rows, device = batch.ids.shape[0], batch.ids.device
        if not bool(fed.any()):
            self._fed, self._samples_from = 0, []
            return
        first = (batch.place == 0).nonzero()[:, 0]
        anchor = batch.target[:, first] - 1  # [B, N] indices in the row
        sample = self._sample.gather(1, anchor).flatten()
        before = self._position.gather(1, anchor).flatten() + (
            0 if anchors_repeated else 1
        )  # real tokens of the sample before the block
        self._anchors = sample, before
        border = before // self._piece
        again = before % self._piece  # [B * N]
        if not self._direct:
            # With blocks sorted by border: the samples whose blocks start at each border, and each block's index in
            # that order.
            order = border.argsort(stable=True)
            self._samples_from = list(sample[order].split(torch.bincount(border).tolist()))
            self._in_order = order.argsort()
        of_block = torch.bincount(batch.block_of[fed], minlength=len(batch.ks)).repeat(rows)
        self._fed = int(fed.sum())
        longest = max(2, int((again + of_block).max()))
        at = torch.arange(longest, device=device)[None]
        in_front = at < again[:, None]
        replayed = self._tokens[sample, 0][:, None] + (before - again)[:, None] + at
        starts = (
            torch.bincount(batch.block_of[fed], minlength=len(batch.ks)).cumsum(0) - of_block[: len(batch.ks)]
        ).repeat(rows)
        row = torch.arange(rows, device=device).repeat_interleave(len(batch.ks))
        inside = torch.minimum(at - again[:, None], (of_block - 1).clamp_min(0)[:, None])
        own = (row * self._fed + starts)[:, None] + inside  # indices into the block tokens of all rows
        own = own.clamp_max(rows * self._fed - 1)
        total = rows * self._real
        self._block_tokens = torch.where(in_front, replayed, total + own)  # [B * N, longest]
        is_own = ~in_front & (at < (again + of_block)[:, None])
        self._block_source = torch.where(is_own, own, -1)
        number = torch.arange(self._fed, device=device) - starts[: len(batch.ks)][batch.block_of[fed]]
        block = torch.arange(rows, device=device)[:, None] * len(batch.ks) + batch.block_of[fed]
        self._block_output = block * longest + again[block] + number  # [B, fed]

    def close(self) -> None:
        """From now on, passes feed blocks alone, any number of times, after the real tokens of the last pass."""
        self._closed = True

    def run(self, mixer: Mixer, x: Tensor) -> Tensor:
        """Run the pass's tokens through one mixer, [B, S, D] -> [B, S, D]."""
        width = x.shape[1]
        if self._closed:
            kept = self._kept[mixer.index]
            assert kept is not None, "the real tokens come first"
            return self._run_blocks(mixer, kept, x, width)
        if width == self._real:
            self._kept[mixer.index] = x
            return self._run_real(mixer, x, width)
        real, blocks = x[:, : self._real], x[:, self._real :]
        return torch.cat([self._run_real(mixer, real, width), self._run_blocks(mixer, real, blocks, width)], 1)

    def _run_real(self, mixer: Mixer, x: Tensor, width: int) -> Tensor:
        tokens = x.flatten(0, 1)[self._tokens]  # [Q, longest, D]
        source = self._in_pass(self._source, self._real, 0, width)
        if self._direct:
            y, state = mixer(tokens, State(leaves="any"), source)
            self._starts[mixer.index] = state.at(*self._anchors) if self._anchors else {}
            return y[self._sample, self._position]
        state, starts, outputs = State(), [], []
        for border, start in enumerate(range(0, tokens.shape[1], self._piece)):
            piece = slice(start, start + self._piece)
            y, state = mixer(tokens[:, piece], state, source[:, piece])
            outputs.append(y)
            if border == 0:  # the state before the first token is all zeros
                starts.append({key: torch.zeros_like(part) for key, part in state.parts.items()})
            starts.append(state.parts)
        self._keep(mixer, starts)
        return torch.cat(outputs, 1)[self._sample, self._position]

    def _keep(self, mixer: Mixer, borders: list[Parts]) -> None:
        """Keep, of the states [Q, ...] at each border, those that blocks start from."""
        used = list(zip(borders, self._samples_from, strict=False))
        self._starts[mixer.index] = {
            key: torch.cat([parts[key][samples] for parts, samples in used])[self._in_order]
            for key in borders[0]
            if used
        }

    def _run_blocks(self, mixer: Mixer, real: Tensor, blocks: Tensor, width: int) -> Tensor:
        tokens = torch.cat([real.flatten(0, 1).to(blocks.dtype), blocks.flatten(0, 1)])[self._block_tokens]
        source = self._in_pass(self._block_source, self._fed, width - self._fed, width)
        y, _ = mixer(tokens, State(self._starts[mixer.index], leaves="none"), source)
        return y.flatten(0, 1)[self._block_output]

    @staticmethod
    def _in_pass(source: Tensor, part: int, offset: int, width: int) -> Tensor:
        """Convert token indices from rows of `part` tokens to rows of `width`, in which they start at `offset`."""
        return torch.where(source < 0, -1, source // part * width + source % part + offset)


class BlockCache(Cache):
    """Carries a layout through a pass of a model that has mixers. Attention layers read and store nothing in it."""

    def __init__(self, layers: int, recurrent: BlockStates) -> None:
        super().__init__(layers=[_NoLayer() for _ in range(layers)])
        self.recurrent = recurrent

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return False


class _NoLayer(CacheLayerMixin):
    is_sliding = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


def block_inputs(model: PreTrainedModel, batch: BlockBatch) -> dict[str, Any]:
    """The inputs that a pass over [real tokens, blocks] needs in addition to ids, positions and masks."""
    mixers = Mixers.of(model)
    if mixers is None:
        return {"use_cache": False}
    layers: int = model.config.get_text_config().num_hidden_layers
    return cache_inputs(model, BlockCache(layers, BlockStates(batch, mixers)))
