"""Decoding with recurrent layers. The stored state lags a little behind the text, and the tokens in between are replayed.

For each mixer, a line keeps its *checkpoint*, which is the state after some real token, and the mixer's inputs since then. A pass
runs

    [inputs since the checkpoint | pending real tokens | drafts | masks]

from the checkpoint and discards the state after the last of them, so masks and refused drafts change no stored state. `commit`
then says how many of the fed tokens turned out real. Their inputs are kept and count as "since the checkpoint" in the next pass.
When these have become many, the pass first moves the checkpoint over as many of them as are certainly real. That is the only
place where a stored state changes.

Kinds that can leave the states after any of their tokens (`Kind.leaves_any`) need no replay: before the next pass, the checkpoint
moves to the last token that turned out real.

Rows may differ in all of these lengths. A row is padded after its own tokens, and no output of a causal layer sees that padding.

Shapes: B rows of a pass, W tokens fed (left-padded), D hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .mixer_state import Parts, State
from .mixers import Mixer, Mixers

STRIDE = 16  # the checkpoint moves by multiples of this many tokens, and fewer than this are replayed


@dataclass(frozen=True)
class _Run:
    """Rows that run n tokens together. rows: their indices in the pass; tokens [r, n]: indices into [kept inputs, fed tokens],
    counted through the rows of the pass; source [r, n]: the index of each among the fed tokens, counted in the same way, or -1 if
    it is replayed or padding."""

    rows: list[int]
    tokens: Tensor
    source: Tensor


@dataclass(frozen=True)
class _Plan:
    """One pass. kept: the most inputs since its checkpoint that any row has; moves: runs that move the checkpoint; rest: the run
    after them, which does not move it; output [B, W]: the index of each fed token's output in the joined outputs of all runs."""

    lines: slice
    kept: int
    moves: list[_Run]
    rest: _Run | None
    output: Tensor


class RecurrentSlots:
    """The recurrent part of a `SlotCache`."""

    def __init__(self, mixers: Mixers, lines: int = 0) -> None:
        self._states: list[Parts] = [{} for _ in mixers.all]  # [lines, ...]; empty before the first pass
        self._inputs: list[Tensor | None] = [None for _ in mixers.all]  # [lines, room, D]
        self._since = [0] * lines  # real tokens of each line since its checkpoint
        self._replays = not mixers.leave_any
        self._left: list[State | None] = [None for _ in mixers.all]  # states of the last pass, if nothing is replayed
        self._moved = [0] * lines  # tokens over which the last pass moved the checkpoint
        self._plan: _Plan | None = None

    @property
    def lines(self) -> int:
        return len(self._since)

    def _settle(self) -> None:
        """Without replay: move the checkpoints of the last pass's lines to the last token that turned out real."""
        plan = self._plan
        if self._replays or plan is None or plan.rest is None:
            return
        rows = torch.tensor(plan.rest.rows, device=plan.output.device)
        behind = torch.tensor(self._since[plan.lines], device=plan.output.device)
        lines = list(range(self.lines))[plan.lines]
        for i, left in enumerate(self._left):
            if left is not None:
                self._store(i, left.at(rows, behind), lines)
                self._left[i] = None
        self._since[plan.lines] = [0] * len(lines)
        self._plan = None

    def resize(self, lines: int) -> None:
        """Have exactly this many lines. What is stored in further lines is lost."""
        if lines == self.lines:
            return
        self._settle()
        more = max(0, lines - self.lines)
        self._since = [*self._since[:lines], *[0] * more]
        self._moved = [*self._moved[:lines], *[0] * more]
        for i, (parts, inputs) in enumerate(zip(self._states, self._inputs, strict=True)):
            self._states[i] = {key: _resized(part, lines) for key, part in parts.items()}
            self._inputs[i] = None if inputs is None else _resized(inputs, lines)

    def forget(self, line: int) -> None:
        """Reset a line to the state before the first token."""
        self._settle()
        self._since[line] = self._moved[line] = 0
        for parts, inputs in zip(self._states, self._inputs, strict=True):
            for part in parts.values():
                part[line].zero_()
            if inputs is not None:
                inputs[line].zero_()

    def move(self, lines: list[int], to: list[int]) -> None:
        self._settle()
        since = [self._since[line] for line in lines]
        for line, count in zip(to, since, strict=True):
            self._since[line] = count
        for parts, inputs in zip(self._states, self._inputs, strict=True):
            for part in parts.values():
                part[to] = part[lines]
            if inputs is not None:
                inputs[to] = inputs[lines]

    def commit(self, line: int, accepted: int) -> None:
        """Record that the first `accepted` of the tokens that the last pass fed for this line turned out real."""
        self._since[line] += accepted - self._moved[line]
        self._moved[line] = 0

    def place(self, first: int, real: Sequence[int], widths: Sequence[int], device: torch.device) -> None:
        """Plan the next pass. Lines first, first + 1, ... feed `widths` tokens each, left-padded to the widest. The first
        `real` tokens of each line are certainly real."""
        self._settle()
        rows, width = range(len(widths)), max(widths)
        since = [self._since[first + i] for i in rows]
        kept = max(since)
        known = [n + r for n, r in zip(since, real, strict=True)]
        whole = [n + w for n, w in zip(since, widths, strict=True)]
        # A row that feeds known tokens only moves over all of them, so plain decoding has nothing to replay.
        moved = [n if n == all_ else n // STRIDE * STRIDE * self._replays for n, all_ in zip(known, whole, strict=True)]
        rest = [all_ - m for all_, m in zip(whole, moved, strict=True)]

        def run(chosen: list[int], start: list[int], length: int) -> _Run:
            at = torch.arange(length)[None] + torch.tensor(start)[:, None]
            last = torch.tensor([whole[i] - 1 for i in chosen])[:, None]
            n = torch.tensor([since[i] for i in chosen])[:, None]
            pad = torch.tensor([width - widths[i] for i in chosen])[:, None]
            inside = torch.minimum(at, last)
            fed = pad + inside - n
            tokens = torch.where(inside < n, inside, kept + fed)
            row = torch.tensor(chosen)[:, None]
            source = torch.where((at < n) | (at > last), -1, row * width + fed)
            return _Run(chosen, (tokens + row * (kept + width)).to(device), source.to(device))

        moves = [
            run(chosen, [0] * len(chosen), length)
            for length in sorted({m for m in moved if m})
            if (chosen := [i for i in rows if moved[i] == length])
        ]
        rest_run = run(list(rows), moved, max(rest)) if max(rest) else None
        # The index of each fed token's output.
        output = torch.zeros(len(widths), width, dtype=torch.long)
        start = 0
        for part in [*moves, *([rest_run] if rest_run else [])]:
            length = part.tokens.shape[1]
            for r, i in enumerate(part.rows):
                begin = 0 if part is not rest_run else moved[i]
                end = min(begin + length, whole[i])
                first_fed = max(begin, since[i])
                if end > first_fed:
                    to = width - widths[i] + first_fed - since[i]
                    output[i, to : to + end - first_fed] = torch.arange(
                        start + r * length + first_fed - begin, start + r * length + end - begin
                    )
            start += len(part.rows) * length
        lines = slice(first, first + len(widths))
        self._plan = _Plan(lines, kept, moves, rest_run, output.to(device))
        self._moved[lines] = moved

    def run(self, mixer: Mixer, x: Tensor) -> Tensor:
        """Run one mixer on the pass's tokens, [B, W, D] -> [B, W, D]."""
        plan, inputs, parts = self._plan, self._inputs[mixer.index], self._states[mixer.index]
        assert plan is not None, "call place() before run()"
        both = torch.cat([inputs[plan.lines, : plan.kept], x], 1) if plan.kept and inputs is not None else x
        flat = both.flatten(0, 1)
        outputs = []
        for part in plan.moves:
            lines = [plan.lines.start + i for i in part.rows]
            y, after = mixer(flat[part.tokens], State(parts).rows(lines), part.source)
            parts = self._store(mixer.index, after.parts, lines)
            outputs.append(y.flatten(0, 1))
        if plan.rest is not None:
            tokens = flat[plan.rest.tokens]
            before = State(parts).rows(plan.lines, leaves="the last" if self._replays else "any")
            y, after = mixer(tokens, before, plan.rest.source)
            outputs.append(y.flatten(0, 1))
            if not self._replays:
                self._left[mixer.index] = after
            else:
                if not parts:
                    self._store(mixer.index, after.parts, None)
                self._keep(mixer.index, tokens, plan.lines)
        return torch.cat(outputs)[plan.output] if len(outputs) > 1 else outputs[0][plan.output]

    def _store(self, index: int, parts: Parts, lines: list[int] | None) -> Parts:
        """Write the rows' states to their lines, after allocating room for all lines if there is none yet. lines=None: allocate only."""
        own = self._states[index]
        for key, part in parts.items():
            if key not in own:
                own[key] = part.new_zeros(self.lines, *part.shape[1:])
            if lines is not None:
                own[key][lines] = part
        return own

    def _keep(self, index: int, tokens: Tensor, lines: slice) -> None:
        """Keep tokens [B, n, D] as the inputs since the checkpoint. Not all need be real: `commit` says how many are."""
        inputs, n = self._inputs[index], tokens.shape[1]
        if inputs is None or inputs.shape[1] < n:
            room = tokens.new_zeros(self.lines, n + STRIDE, tokens.shape[2])
            if inputs is not None:
                room[:, : inputs.shape[1]] = inputs
            inputs = self._inputs[index] = room
        inputs[lines, :n] = tokens

    def line_bytes(self) -> int:
        """Bytes that a line takes, which do not depend on its length. 0 before the first pass."""
        return sum(
            tensor[:1].numel() * tensor.element_size()
            for parts, inputs in zip(self._states, self._inputs, strict=True)
            for tensor in [*parts.values(), *([] if inputs is None else [inputs])]
        )


def _resized(old: Tensor, lines: int) -> Tensor:
    return torch.cat([old[:lines], old.new_zeros(max(0, lines - len(old)), *old.shape[1:])])
