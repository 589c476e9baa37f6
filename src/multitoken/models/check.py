"""What a model can be used for, tested on the model itself: `multitoken check`.

Every test compares what this package computes with plain forward passes of the model, one sequence at a time and without a
cache. Differences of logits and gradients are given relative to their own spread: 1 means "unrelated", 1e-5 is rounding.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from multitoken.decoding import Decoder, Exact, NextToken, Policy, Sampling
from multitoken.decoding.gate import GatedAdapter, adaptable_layers

from .selftest import (
    cached_error,
    far_error,
    packed_error,
    packed_gradient_error,
    some_tokens,
    tolerance_of,
    what_would_help,
    why_refused,
)

NEW_TOKENS = 20
_LENGTHS = (5, 17, 1, 11, 30)  # of the prompts, in tokens
_TIE = 1e-4  # share of the logits' spread: two top logits this close are a tie


@dataclass(frozen=True)
class Finding:
    """The result of one test. follows: the use that needs this test to pass. difference: the largest relative difference, or, as
    an int, the number of different tokens."""

    follows: str
    test: str
    passed: bool
    difference: float | int | None = None
    note: str = ""

    @property
    def shown(self) -> str:
        if self.difference is None:
            return "-"
        return f"{self.difference} tokens" if isinstance(self.difference, int) else f"{self.difference:.0e}"


def check_model(model: PreTrainedModel, mask_id: int) -> list[Finding]:
    """Run all tests, those with a gate last. The model has a gate afterwards, so it cannot be used for anything else."""
    tests: list[tuple[str, str, Callable[[], tuple[float | int, str]]]] = [
        ("trained", "packed blocks = blocks alone", lambda: (_logits(packed_error, model, mask_id), "")),
        ("trained", "their gradients, too", lambda: (_gradients(model, mask_id), "")),
        ("decoded", "cached steps = whole passes", lambda: (_logits(cached_error, model, mask_id), "")),
        ("decoded", "a far token changes none in front of it", lambda: (_logits(far_error, model, mask_id), "")),
    ]
    texts = _Texts(model, mask_id)
    tests += [
        ("exact", "Exact 0 and 0.3 = next token of whole passes", texts.exact),
        ("exact", "the same = transformers' generate, greedy", texts.as_generate),
        ("batched", "five unlike rows together = each alone", texts.batched),
        ("sampled", "Exact = next token, with one seed", texts.sampled),
        ("gated", "real positions under a gate = without", texts.real_positions),
        ("gated", "Exact under a gate = next token without", texts.gated),
    ]
    return [_run(model, *test) for test in tests]


def _run(model: PreTrainedModel, follows: str, test: str, measure: Callable[[], tuple[float | int, str]]) -> Finding:
    try:
        difference, note = measure()
    except Exception as error:  # any error that a model family raises is the result of the test
        return Finding(follows, test, False, note=why_refused(model, test, error))
    passed = bool(note) or (difference == 0 if isinstance(difference, int) else difference < tolerance_of(model))
    return Finding(follows, test, passed, difference, note if passed else what_would_help(model))


@torch.inference_mode()
def _logits(error_of: Callable[..., float], model: PreTrainedModel, mask_id: int) -> float:
    return error_of(model, some_tokens(model, mask_id), mask_id)


def _gradients(model: PreTrainedModel, mask_id: int) -> float:
    return packed_gradient_error(model, some_tokens(model, mask_id, 32), mask_id)


class _Texts:
    """The texts that the model writes after the same five prompts, decoded in different ways."""

    def __init__(self, model: PreTrainedModel, mask_id: int) -> None:
        self.model, self.mask_id = model, mask_id
        tokens = some_tokens(model, mask_id).tolist()
        self.prompts = [tokens[i : i + min(n, len(tokens) - 5)] for i, n in enumerate(_LENGTHS)]
        self.decoder = Decoder(model, mask_id=mask_id, trained_k=6)
        self._plain: list[list[int]] | None = None
        self._ties: list[int] = []

    def _decode(self, policy: Policy, prompts: list[list[int]] | None = None, **options: Any) -> list[list[int]]:
        prompts = self.prompts if prompts is None else prompts
        rows: list[list[int]] = [[] for _ in prompts]
        for chunk in self.decoder.decode(prompts, policy=policy, max_new_tokens=NEW_TOKENS, **options):
            rows[chunk.row] += chunk.token_ids
        return rows

    @property
    def plain(self) -> list[list[int]]:
        """The texts decoded with one whole forward pass per token. Also stores, per row, the first position at which the two top
        logits are tied."""
        if self._plain is None:
            found = [self._slow(prompt) for prompt in self.prompts]
            self._plain, self._ties = [text for text, _ in found], [tie for _, tie in found]
        return self._plain

    @torch.inference_mode()
    def _slow(self, prompt: list[int]) -> tuple[list[int], int]:
        ids, tie = list(prompt), NEW_TOKENS
        for place in range(NEW_TOKENS):
            row = torch.tensor([ids], device=self.model.device)
            logits = (
                self.model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0, -1].float()
            )
            spread = float(logits.std())
            if self.mask_id < len(logits):
                logits[self.mask_id] = -torch.inf
            top = logits.topk(2)
            if float(top.values[0] - top.values[1]) < _TIE * spread:
                tie = min(tie, place)
            ids.append(int(top.indices[0]))
        return ids[len(prompt) :], tie

    def _others(self, ours: list[list[int]]) -> int:
        """The number of tokens that differ from those of whole passes, up to the first tie of each row."""
        rows = zip(ours, self.plain, self._ties, strict=True)
        return sum(a != b for row, plain, tie in rows for a, b in zip(row[:tie], plain[:tie], strict=True))

    def exact(self) -> tuple[int, str]:
        return max(self._others(self._decode(policy)) for policy in (NextToken(), Exact(0.0), Exact(0.3))), ""

    @torch.inference_mode()
    def as_generate(self) -> tuple[int, str]:
        others = 0
        for i, prompt in enumerate(self.prompts):
            ids = torch.tensor([prompt], device=self.model.device)
            own: Any = type(self.model)
            out = own.generate(  # the class's method: the instance's attribute may be ours
                self.model, ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS, suppress_tokens=[self.mask_id], eos_token_id=[], pad_token_id=0,
            )  # fmt: skip
            theirs, ours = out[0, len(prompt) :].tolist(), self.plain[i]
            others += sum(a != b for a, b in zip(theirs[: self._ties[i]], ours[: self._ties[i]], strict=True))
        return (
            others,
            "transformers' own generate differs from its whole passes here; we match its passes" if others else "",
        )

    def batched(self) -> tuple[int, str]:
        policy = Exact(0.0)
        alone = [self._decode(policy, [prompt])[0] for prompt in self.prompts]
        return max(self._others(alone), self._others(self._decode(policy))), ""

    def sampled(self) -> tuple[int, str]:
        hot = Sampling(1.0, seed=3)
        pairs = zip(self._decode(NextToken(), sampling=hot), self._decode(Exact(0.0), sampling=hot), strict=True)
        return sum(a != b for ours, other in pairs for a, b in zip(ours, other, strict=True)), ""

    def real_positions(self) -> tuple[float, str]:
        """Attaches a gate with large random updates; all later tests run with it."""
        assert self.plain
        real = some_tokens(self.model, self.mask_id)
        without = torch.cat([real, torch.zeros_like(real[:4])])[None]
        beyond = int(self.model.config.get_text_config().vocab_size) + 1
        before = self._forward(without)
        adapter = GatedAdapter(self.model, mask_id=beyond, rank=4, layers=adaptable_layers(self.model))
        for parameter in adapter.parameters():
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator(parameter.device).manual_seed(0))
        adapter.requires_grad_(False).attach_for_decoding(self.model)
        self.mask_id = beyond
        after = self._forward(torch.cat([real, torch.full_like(real[:4], beyond)])[None])
        n = len(real)
        if torch.equal(before[n:], after[n:]):
            raise RuntimeError("the gate did not act at masks")
        return float((before[:n] - after[:n]).abs().max() / before[:n].std()), ""

    @torch.inference_mode()
    def _forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].float()

    def gated(self) -> tuple[int, str]:
        if self.mask_id < self.model.config.get_text_config().vocab_size:
            raise RuntimeError("there is no gate: see the test before")
        self.decoder = Decoder(self.model, mask_id=self.mask_id, trained_k=6)
        self._plain = None  # computed again: the mask token's id is now beyond the vocabulary
        plain = self._decode(NextToken())
        ours = self._decode(Exact(0.0))
        return max(self._others(plain), self._others(ours)), ""


def uses(findings: list[Finding]) -> Iterator[tuple[str, bool]]:
    """Each use, and whether all its tests passed. "exported" follows from other tests: a checkpoint is exported with the code
    tested here."""
    for use in dict.fromkeys(finding.follows for finding in findings):
        yield use, all(finding.passed for finding in findings if finding.follows == use)
    yield "exported", all(finding.passed for finding in findings if finding.follows in ("decoded", "exact", "batched"))
