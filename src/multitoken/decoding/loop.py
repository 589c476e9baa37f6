"""`Decoder`: a model with its mask token and its EOS ids. It checks requests. The decode loop itself is in `engine`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from transformers import LogitsProcessorList, PreTrainedModel

from .arguments import check_length
from .attention import AttentionRule
from .branches import PACED
from .compiled import CompiledLayers
from .draft_head import Drafter, DraftHead
from .engine import Engine
from .failures import DecodingError, RowsFailed
from .mixers import Mixers
from .pace import Pace
from .policies import NextToken, Policy, StaticK, with_trained_k
from .positions import is_shortened, position_limit
from .records import Chunk
from .row import Request
from .sampling import Sampling


class Decoder:
    """Decodes with one model. `mask_id=None` or `trained_k=1` means an ordinary model, which decodes with NextToken only."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        mask_id: int | None = None,
        trained_k: int = 1,
        eos_ids: Sequence[int] = (),
        processors: LogitsProcessorList | None = None,
        head: DraftHead | None = None,
    ) -> None:
        self.model = model
        self.mask_id = mask_id
        self.trained_k = trained_k if mask_id is not None else 1
        self.eos_ids = frozenset(eos_ids)
        self.processors = processors or LogitsProcessorList()
        self.max_positions = position_limit(model)
        self.rule = AttentionRule(model)
        self._pace: Pace | None = None
        self._compiled: CompiledLayers | None = None
        self.drafter = Drafter.of(head, model) if head is not None and self.trained_k > 1 else None

    def request(
        self,
        prompt: Sequence[int],
        *,
        policy: Policy | None = None,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        row: int = 0,
        name: str = "the prompt",
        **more: Any,
    ) -> Request:
        """Return a checked request. `row` keys its sampling noise, and `name` identifies the prompt in error messages.
        `more` holds further fields of `Request`; `processors` in it replace the decoder's own.

        Raises `DecodingError` if the request cannot be decoded.
        """
        policy = with_trained_k(NextToken() if policy is None else policy, self.trained_k)
        check_length(max_new_tokens)
        self._check_prompt(name, prompt, max_new_tokens)
        processors = LogitsProcessorList(more.pop("processors", self.processors))
        if sampling is not None:
            processors.extend(sampling.processors())
            more["seed"] = sampling.seed
        more.setdefault("eos_ids", self.eos_ids)
        return Request(list(prompt), policy, max_new_tokens, processors=processors, noise_row=row, **more)

    def engine(self, *, adaptive: bool = False, **options: Any) -> Engine:
        """A new engine for this model. adaptive: whether it chooses the numbers of masks and branches by what is fastest on
        this machine. options: passed on to `Engine`."""
        if adaptive and self.trained_k > 1:
            if self._pace is None:  # shared by all engines: what one answer measures helps the next
                branched = self._compiled is None and Mixers.of(self.model) is None
                self._pace = Pace(self.trained_k - 1, PACED if branched else 0)
            options["pace"] = self._pace
        return Engine(
            self.model,
            mask_id=self.mask_id,
            rule=self.rule,
            max_positions=self.max_positions,
            drafter=self.drafter,
            compiled=self._compiled,
            **options,
        )

    def compile(self, backend: str = "inductor") -> None:
        """Make engines created from now on run compiled layers. This call compiles them, which takes minutes on a CPU. Only
        the speed and the last bits of the logits change. Raises `DecodingError` for a model that cannot be compiled
        (`CompiledLayers`)."""
        if self._compiled is not None:
            return
        self._compiled = layers = CompiledLayers(self.model, backend)
        self._pace = None  # earlier step times do not apply to compiled layers
        try:
            with layers.making():
                self._visit_graphs()
        except BaseException:
            self._compiled = None  # a second call must not find it done
            raise

    def _visit_graphs(self) -> None:
        """Run passes of every kind that a compiled model has a graph for."""
        ids = [i for i in range(self.model.config.get_text_config().vocab_size) if i != self.mask_id][:8]
        policies = [NextToken(), *([StaticK(self.trained_k)] if self.trained_k > 1 else [])]
        for policy in policies:
            # Three rows end one after another, so that the compiler does not treat the number of rows as a constant.
            for rows in (1, 3):
                requests = [
                    self.request(
                        ids[: 3 + i], policy=policy, max_new_tokens=2 * self.trained_k + i, eos_ids=frozenset()
                    )
                    for i in range(rows)
                ]
                for _ in self.run(requests):
                    pass

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        policy: Policy | None = None,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        first_row: int = 0,
        **options: Any,
    ) -> Iterator[Chunk]:
        """An iterator over the chunks as they are produced. All rows are decoded together and numbered from `first_row`.
        Errors in the arguments are raised by this call, before any work. The error of a single row is raised when the
        other rows are done. options: those of `engine`."""
        if not prompts:
            raise DecodingError("there is no prompt; give at least one")
        requests = [
            self.request(
                prompt,
                policy=policy,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                row=first_row + i,
                name=f"prompt {i}",
            )
            for i, prompt in enumerate(prompts)
        ]
        return self.run(requests, first_row=first_row, **options)

    def run(self, requests: Sequence[Request], *, first_row: int = 0, **options: Any) -> Iterator[Chunk]:
        """The chunks of checked requests as they are produced. If single rows fail, `RowsFailed` is raised when the other
        rows are done."""
        engine = self.engine(**options)
        for request in requests:
            engine.add(request)
        for chunk in engine.run():
            yield replace(chunk, row=chunk.row + first_row) if first_row else chunk
        if engine.failed:
            failed = RowsFailed({number + first_row: error for number, error in engine.failed.items()})
            raise failed from failed.errors[min(failed.errors)]

    def _check_prompt(self, name: str, prompt: Sequence[int], max_new_tokens: int) -> None:
        if not len(prompt):
            raise DecodingError(f"{name} is empty; it needs at least one token")
        vocabulary: int = self.model.config.get_text_config().vocab_size
        for token in prompt:
            if token == self.mask_id:
                raise DecodingError(
                    f"{name} contains the mask token (id {token}), which only the decoder may feed; remove it"
                )
            if not 0 <= token < vocabulary:
                raise DecodingError(f"{name} contains token id {token}; the model knows 0 to {vocabulary - 1}")
        if self.max_positions is not None and len(prompt) + max_new_tokens > self.max_positions:
            why = " (longrope changes the frequencies of all tokens beyond these)" if is_shortened(self.model) else ""
            raise DecodingError(
                f"{name} has {len(prompt)} tokens and max_new_tokens is {max_new_tokens}, together more than the "
                f"model's {self.max_positions} positions{why}; shorten the prompt or ask for at most "
                f"{max(0, self.max_positions - len(prompt))} tokens"
            )
