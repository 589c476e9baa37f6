"""vLLM engines in this process, and what they must equal: our own decoder with the same weights."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import vllm_local  # before vLLM: it sets the environment
from benchmarks.rivals import rival
from multitoken.decoding import Decoder, NextToken, Policy, Sampling
from multitoken.decoding.exported import decoder_of
from multitoken.quickstart.corpus import examples
from multitoken.quickstart.embedded import checkpoint

CHECKPOINT = rival("full")
BASE = checkpoint("base")
MAX_MODEL_LEN = 512
EOS = 1


@dataclass(frozen=True)
class Case:
    """A request in a form that can be given to both sides."""

    prompt: list[int]
    max_tokens: int
    sampling: Sampling | None = None
    eos: bool = True
    more: dict[str, Any] = field(default_factory=dict)  # further arguments of vLLM's SamplingParams
    extra: dict[str, Any] = field(default_factory=dict)  # the extra_args of SamplingParams

    def params(self) -> Any:
        from vllm import SamplingParams

        own: dict[str, Any] = {"temperature": 0.0}
        if self.sampling is not None:
            own = {"temperature": self.sampling.temperature, "seed": self.sampling.seed}
            own |= {name: value for name in ("top_k", "top_p") if (value := getattr(self.sampling, name)) is not None}
        return SamplingParams(
            max_tokens=self.max_tokens, ignore_eos=not self.eos, extra_args=self.extra or None, **own, **self.more
        )


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="session")
def prompts(tokenizer: Any) -> list[list[int]]:
    """Forty prompts of mixed kinds and lengths."""
    texts = [
        example.prompt
        for task, n in (("word-problems", 16), ("letters", 8), ("counting", 8), ("repeating", 8))
        for example in examples(task, "test", n)
    ]
    ids = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for text in texts
    ]
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0)).tolist()
    return [ids[i] for i in order]


class Reference:
    """Our own decoder for a checkpoint, adapted or not."""

    def __init__(self, checkpoint: Path, adapted: bool = True) -> None:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.decoder = decoder_of(model) if adapted else Decoder(model)

    def plain(self, cases: Sequence[Case], **more: Any) -> list[list[int]]:
        """The answers of next-token decoding, which exact must equal."""
        return [
            [t for chunk in chunks for t in chunk] for chunks in self._run(cases, [NextToken()] * len(cases), **more)
        ]

    def chunks(self, cases: Sequence[Case], policies: Sequence[Policy], **more: Any) -> list[list[tuple[int, ...]]]:
        """The chunks of each request, counted as in vLLM. vLLM feeds no masks with the last piece of a prompt, so its first
        chunk is one token. After that token, our own decoder continues with masks at once."""
        first = self._run([_with(case, max_tokens=1) for case in cases], [NextToken()] * len(cases), **more)
        going = [i for i, case in enumerate(cases) if case.max_tokens > 1 and not (case.eos and first[i][0][0] == EOS)]
        rest = self._run(
            [
                _with(cases[i], prompt=[*cases[i].prompt, *first[i][0]], max_tokens=cases[i].max_tokens - 1)
                for i in going
            ],
            [policies[i] for i in going],
            **more,
        )
        for i, chunks in zip(going, rest, strict=True):
            first[i] = [*first[i], *chunks]
        return first

    def _run(
        self, cases: Sequence[Case], policies: Sequence[Policy], processors: Any = ()
    ) -> list[list[tuple[int, ...]]]:
        if not cases:
            return []
        requests = [
            self.decoder.request(
                case.prompt,
                policy=policy,
                max_new_tokens=case.max_tokens,
                sampling=case.sampling,
                eos_ids=frozenset([EOS] if case.eos else []),
                processors=processors,
            )
            for case, policy in zip(cases, policies, strict=True)
        ]
        rows: list[list[tuple[int, ...]]] = [[] for _ in cases]
        for chunk in self.decoder.run(requests):
            rows[chunk.row].append(chunk.token_ids)
        return rows


def _with(case: Case, **changes: Any) -> Case:
    from dataclasses import replace

    return replace(case, **changes)


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference(CHECKPOINT)


@pytest.fixture(scope="session")
def original() -> Reference:
    """The model that the embedded ones were adapted from. It does not know masks."""
    return Reference(BASE, adapted=False)


def engine(model: Path | str = CHECKPOINT, **options: Any) -> AbstractContextManager[Any]:
    """A vLLM engine. Its resources are released at the end."""
    defaults = {"max_model_len": MAX_MODEL_LEN, "max_num_batched_tokens": 2048}
    return vllm_local.engine(Path(model), **(defaults | options))


@pytest.fixture(scope="session")
def generate() -> Callable[..., list[list[int]]]:
    def run(llm: Any, cases: Sequence[Case]) -> list[list[int]]:
        outputs = llm.generate(
            [{"prompt_token_ids": case.prompt} for case in cases], [case.params() for case in cases], use_tqdm=False
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    return run
