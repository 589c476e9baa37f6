"""One sequence during decoding: what it feeds next, and what it does with the model's predictions."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from .branches import Branch, likely_fronts
from .failures import DecodingError
from .pace import Record
from .policies import Exact, Policy
from .records import Chunk, Finish
from .sampling import scale_free


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it. `seed=None` is greedy.

    `processors` and `criteria` are those of transformers. They are shown `shown_before` (the padding in front of the row in a
    caller's batch, if any), the prompt and the emitted tokens: for every position exactly the prefix that plain decoding would
    show. Noise is keyed by (seed, noise_row, position). `keep_scores`: chunks contain logits and scores. `adaptive=False`: the
    row is fed all masks that it may have, even if the engine chooses the number of masks by what is fastest.
    """

    prompt: Sequence[int]
    policy: Policy
    max_new_tokens: int
    eos_ids: frozenset[int] = frozenset()
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    criteria: StoppingCriteriaList = field(default_factory=StoppingCriteriaList)
    seed: int | None = None
    noise_row: int = 0
    shown_before: Sequence[int] = ()
    keep_scores: bool = False
    adaptive: bool = True


class Row:
    """The state of one request. `ids` holds the prompt and everything emitted; its first `cached` tokens are in cache slots.

    A row feeds [tokens that are not in slots | drafts | masks]. While the rest of its prompt is longer than one pass takes, it
    is not `started` and has emitted nothing.
    """

    def __init__(self, number: int, request: Request) -> None:
        self.number = number
        self.request = request
        self.ids = list(request.prompt)
        self.remaining = request.max_new_tokens  # tokens that may still be emitted
        self.cached = 0
        self.drafts: list[int] = []
        self.sure: list[float] = []  # the drafts' confidences
        self.started = False
        self.place = 0  # its number in the order in which rows got cache lines
        self.finish: Finish | None = None
        self.error: DecodingError | None = None
        self.record = Record()  # what its last blocks gave, for the pace
        self.settled: tuple[int, int, int] | None = None  # of the last step: masks fed, drafts made, drafts that held
        self._fed: int | None = None  # masks of the block that the drafts come from, if it was valid

    @property
    def policy(self) -> Policy:
        return self.request.policy

    @cached_property
    def way(self) -> Hashable | None:
        """How the row chooses its tokens. Rows with an equal value can choose together. None if its processors look at token ids."""
        request = self.request
        if request.seed is None and not request.processors:
            return "greedy"
        signature = scale_free(request.processors)
        return None if signature is None else (request.seed is not None, signature)

    @property
    def done(self) -> bool:
        return self.finish is not None or self.error is not None

    def pending(self) -> int:
        """How many real tokens are not in slots yet; at least one."""
        return len(self.ids) - self.cached

    def room_for_masks(self, max_positions: int | None, held: int | None = None) -> int:
        """How many masks may be fed after the first `held` drafts (None: after all). Never more than could still be emitted, and
        never beyond the model's last position."""
        held = len(self.drafts) if held is None else held
        if held and self.drafts[held - 1] in self.request.eos_ids:
            return 0
        assert self.policy.k is not None
        # With verification, masks give drafts. The very last token is never a draft: it comes from the step that confirms drafts.
        room = self.remaining - held - (2 if self.policy.verifies else 1)
        if max_positions is not None:
            room = min(room, max_positions - len(self.ids) - held)
        return max(0, min(self.policy.k - 1, room))

    def most_slots(self, paced: int) -> int:
        """The most cache slots that it may need, including those of its branches. paced: how many branches a pace may feed."""
        return len(self.ids) + self.remaining + self._most_branches(paced) * self._branch_masks()

    def branches(self, max_positions: int | None, paced: int) -> tuple[Branch, ...]:
        """The branches that its policy asks for, or `paced` ones if the policy gives no number. Each is half as long as a block."""
        found = [
            Branch(held, min(self._branch_masks(), self.room_for_masks(max_positions, held)))
            for held in likely_fronts(self.sure, self._most_branches(paced))
        ]
        return tuple(branch for branch in found if branch.masks)

    def _most_branches(self, paced: int) -> int:
        """Each branch follows a different number of drafts, and there are at most k - 1 drafts."""
        asked = self.policy.branches if isinstance(self.policy, Exact) else 0
        if asked is None:
            asked = paced if self.request.adaptive else 0
        return min(asked, (self.policy.k or 1) - 1)

    def _branch_masks(self) -> int:
        return (self.policy.k or 1) // 2

    def held(self, tokens: Sequence[int]) -> int:
        """How many drafts are confirmed by the model's own choices."""
        held = 0
        while held < len(self.drafts) and tokens[held] == self.drafts[held]:
            held += 1
        return held

    def take(self, tokens: list[int], confidences: list[float]) -> Chunk:
        """Advance by one step's choices. tokens and confidences: for each draft the choice in its place, up to and including
        the first that refuses one; if all drafts hold, one choice more. Then come those of the block after the drafts that
        hold, if there is one. After a refused draft, that block is a branch."""
        held = self.held(tokens)
        self.settled = (self._fed, len(self.drafts), held) if self._fed is not None else None
        self._fed = None
        emitted, cached = tokens[: held + 1], len(self.ids) + held
        drafts: list[int] = []
        sure: list[float] = []
        if held == len(self.drafts) or len(tokens) > held + 1:
            self._fed = len(tokens) - held - 1
            kept = self.policy.kept(confidences[held:])
            behind = tokens[held + 1 : held + kept]
            if self.policy.verifies:
                drafts, sure = behind, confidences[held + 1 : held + kept]
            else:
                emitted += behind
        self.drafts = self._up_to_eos(drafts)
        self.sure = sure[: len(self.drafts)]
        if len(self.drafts) < len(drafts):
            self._fed = len(self.drafts)  # what follows EOS says nothing about acceptance
        emitted = self._stopped(self._up_to_eos(emitted))
        self.cached, self.started = cached, True
        self.ids = self.ids + emitted
        self.remaining -= len(emitted)
        if self.remaining == 0 and self.finish is None:
            self.finish = "length"
        return Chunk(self.number, tuple(emitted), tuple(confidences[: len(emitted)]), finish=self.finish)

    def _up_to_eos(self, tokens: list[int]) -> list[int]:
        for i, token in enumerate(tokens):
            if token in self.request.eos_ids:
                return tokens[: i + 1]
        return tokens

    def _stopped(self, emitted: list[int]) -> list[int]:
        """The tokens up to where a criterion is met or EOS ends the text: `emitted` may hold more than plain decoding would write."""
        if self.request.criteria:
            shown = torch.tensor([[*self.request.shown_before, *self.ids, *emitted]])
            before = shown.shape[1] - len(emitted)
            for i in range(len(emitted)):
                try:
                    met = self.request.criteria(shown[:, : before + i + 1], None)  # pyright: ignore[reportArgumentType]
                except Exception as error:  # a user's criterion: its failure concerns this row only
                    self.error = DecodingError(f"a stopping criterion failed: {type(error).__name__}: {error}")
                    self.error.__cause__ = error
                    break
                if bool(torch.as_tensor(met).all()):
                    emitted = emitted[: i + 1]
                    self.finish = "stop"
                    break
        if emitted[-1] in self.request.eos_ids:
            self.finish = "eos"
        return emitted
