"""Decoding with recurrent layers: the state is a little behind, and what stands between is replayed.

A line keeps, for each mixer, the state behind some real token, its *checkpoint*, and the mixer's inputs since. A pass runs

    [inputs since the checkpoint | pending real tokens | drafts | masks]

from the checkpoint and throws the state behind the last of them away, so that masks and refused drafts write to nothing. What
turned out real, `commit` says; its inputs are kept, and count as "since the checkpoint" in the next pass. Where they have become
many, the pass first moves the checkpoint over as many of them as are surely real. That is the only place where a state changes.

Kinds that can leave the states behind any of their tokens (`Kind.leaves_any`) need no replay: before the next pass, the checkpoint moves
behind the last token that turned out real.

Rows are as unlike as they please: behind its own tokens a row is padded, which no output of a causal layer sees.

Shapes: B rows of a pass, W tokens fed (left-padded), D hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .mixer_state import Parts, State
from .mixers import Mixer, Mixers

STRIDE = 16  # tokens by which the checkpoint moves, and fewer than these are replayed


@dataclass(frozen=True)
class _Run:
    """Rows that run so many tokens together. rows: of the pass; tokens [r, n]: indices into [inputs kept, fed tokens] of a row;
    source [r, n]: which fed token each is, counted through the rows, -1 where it is replayed or padding."""

    rows: list[int]
    tokens: Tensor
    source: Tensor


@dataclass(frozen=True)
class _Plan:
    """One pass. kept: the most inputs that a row brings; moves: runs that move the checkpoint; rest: what is thrown away behind
    it; output [B, W]: where in all runs' outputs, one behind the other, each fed token's stands."""

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
        self._left: list[State | None] = [None for _ in mixers.all]  # of the last pass, where nothing is replayed
        self._moved = [0] * lines  # tokens over which the last pass moved it
        self._plan: _Plan | None = None

    @property
    def lines(self) -> int:
        return len(self._since)

    def _settle(self) -> None:
        """Without a replay: move the lines of the last pass to what turned out real in it."""
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

    def grow(self, lines: int) -> None:
        self._settle()
        more = lines - self.lines
        if more <= 0:
            return
        self._since += [0] * more
        self._moved += [0] * more
        for i, (parts, inputs) in enumerate(zip(self._states, self._inputs, strict=True)):
            self._states[i] = {key: _longer(part, more) for key, part in parts.items()}
            self._inputs[i] = None if inputs is None else _longer(inputs, more)

    def forget(self, line: int) -> None:
        """The state before the first token."""
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
        """The first `accepted` of the tokens that the last pass fed for this line turned out real."""
        self._since[line] += accepted - self._moved[line]
        self._moved[line] = 0

    def place(self, first: int, real: Sequence[int], widths: Sequence[int], device: torch.device) -> None:
        """The next pass: lines first, first + 1, ... feed `widths` tokens, left-padded to the widest, the first `real` of which
        are surely real."""
        self._settle()
        rows, width = range(len(widths)), max(widths)
        since = [self._since[first + i] for i in rows]
        kept = max(since)
        known = [n + r for n, r in zip(since, real, strict=True)]
        whole = [n + w for n, w in zip(since, widths, strict=True)]
        # All that is known where nothing else is fed: plain decoding then has nothing to replay.
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
        # Where each fed token's output stands.
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
        """The pass's tokens at one mixer, [B, W, D] -> [B, W, D]."""
        plan, inputs, parts = self._plan, self._inputs[mixer.index], self._states[mixer.index]
        assert plan is not None, "place() comes first"
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
        """Write the rows' states to their lines; before the first pass, make room for all lines."""
        own = self._states[index]
        for key, part in parts.items():
            if key not in own:
                own[key] = part.new_zeros(self.lines, *part.shape[1:])
            if lines is not None:
                own[key][lines] = part
        return own

    def _keep(self, index: int, tokens: Tensor, lines: slice) -> None:
        """tokens [B, n, D] are what stands behind the checkpoint now, real or not: `commit` says how many are."""
        inputs, n = self._inputs[index], tokens.shape[1]
        if inputs is None or inputs.shape[1] < n:
            room = tokens.new_zeros(self.lines, n + STRIDE, tokens.shape[2])
            if inputs is not None:
                room[:, : inputs.shape[1]] = inputs
            inputs = self._inputs[index] = room
        inputs[lines, :n] = tokens

    def line_bytes(self) -> int:
        """Bytes that a line takes, whatever its length; 0 before the first pass."""
        return sum(
            tensor[:1].numel() * tensor.element_size()
            for parts, inputs in zip(self._states, self._inputs, strict=True)
            for tensor in [*parts.values(), *([] if inputs is None else [inputs])]
        )


def _longer(old: Tensor, more: int) -> Tensor:
    return torch.cat([old, old.new_zeros(more, *old.shape[1:])])
