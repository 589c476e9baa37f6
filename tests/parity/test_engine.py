"""Continuous batching: rows join and leave, prompts come in pieces, and some rows fail. Every row's text is the same as alone."""

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

import multitoken.decoding.step as step_module
from benchmarks.tiny_families import tiny_model
from multitoken.decoding import ConfAdapt, Decoder, Exact, NextToken, Sampling, StaticK
from multitoken.decoding.pace import Level, Pace
from multitoken.decoding.row import Request, Row
from multitoken.decoding.sampling import choose
from tests.parity.families import EOS, MASK, SUPPORTED
from tests.parity.test_branches import recorded_branches

POLICIES = [NextToken(), Exact(0.0), Exact(0.2, 3), ConfAdapt(0.15), StaticK(3), Exact(0.1)]


def prompt(i: int) -> list[int]:
    generator = torch.Generator().manual_seed(i)
    return torch.randint(6, 90, (1 + (7 * i) % 40,), generator=generator).tolist()


def decoder_of(family: str) -> Decoder:
    return Decoder(SUPPORTED[family]().double(), mask_id=MASK, trained_k=6, eos_ids=[EOS])


def texts(engine) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for chunk in engine.run():
        found.setdefault(chunk.row, []).extend(chunk.token_ids)
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2, sliding and full, eager", "qwen3 mixture of experts"])
def test_64_requests_of_unlike_lengths_and_policies_equal_each_alone(family: str) -> None:
    """Cache lines move when rows leave, and prompts of 40 tokens come in pieces of 16. A token in a wrong line or slot
    changes a text. Some of the rows are sampled."""
    decoder = decoder_of(family)
    requests = [
        decoder.request(
            prompt(i),
            policy=POLICIES[i % len(POLICIES)],
            max_new_tokens=3 + (5 * i) % 23,
            sampling=Sampling(4.0, seed=1, top_k=20) if i % 4 == 1 and POLICIES[i % len(POLICIES)].verifies else None,
            row=i,
        )
        for i in range(64)
    ]
    alone = []
    for request in requests:
        engine = decoder.engine()
        engine.add(request)
        alone.append(texts(engine)[0])
    engine = decoder.engine(max_rows=5, prefill_tokens=16)
    assert [engine.add(request) for request in requests] == list(range(64))
    together = texts(engine)
    assert [together[i] for i in range(64)] == alone
    assert len({len(text) for text in alone}) > 10


def test_requests_may_join_and_be_cancelled_at_any_time() -> None:
    """A row that leaves before its end must not take another row's cache line with it."""
    decoder = decoder_of("llama")
    requests = [decoder.request(prompt(i), policy=Exact(0.0), max_new_tokens=30) for i in range(6)]
    engine = decoder.engine()
    engine.add(requests[0])
    reference = texts(engine)[0]

    engine = decoder.engine(max_rows=3)
    numbers = [engine.add(request) for request in requests[1:5]]
    engine.step()
    late = engine.add(requests[0])
    engine.cancel(numbers[0])  # running
    engine.cancel(numbers[3])  # waiting
    engine.cancel(99)  # unknown: for the engine, the same as a request that has ended
    found = texts(engine)
    assert found[late] == reference
    assert numbers[0] not in found and numbers[3] not in found and {numbers[1], numbers[2]} <= set(found)
    assert not engine.busy and engine.running == 0


class _Breaks(LogitsProcessor):
    def __call__(self, input_ids, scores):
        raise RuntimeError("no such grammar")


def test_one_bad_row_harms_no_other() -> None:
    """NaN in a cache line spoils every row that reads the line, even where the mask forbids it: 0 times NaN is NaN."""
    decoder = decoder_of("llama")
    good = [decoder.request(prompt(i), policy=Exact(0.0), max_new_tokens=12) for i in range(3)]
    reference = []
    for request in good:
        engine = decoder.engine()
        engine.add(request)
        reference.append(texts(engine)[0])
    with torch.no_grad():
        decoder.model.get_input_embeddings().weight[91] = float("nan")  # no prompt above holds it
    bad = decoder.request([7] * 30 + [91] + [7] * 5, policy=Exact(0.0), max_new_tokens=12)
    broken = decoder.request(
        prompt(2), policy=Exact(0.0), max_new_tokens=12, processors=LogitsProcessorList([_Breaks()])
    )
    engine = decoder.engine(max_rows=3)
    numbers = [engine.add(request) for request in (bad, good[0], broken, good[1], good[2])]
    found = texts(engine)
    assert [found[numbers[i]] for i in (1, 3, 4)] == reference
    assert set(engine.failed) == {numbers[0], numbers[2]}
    assert "not numbers" in str(engine.failed[numbers[0]])
    assert "no such grammar" in str(engine.failed[numbers[2]])


def test_memory_is_bounded_and_said_before() -> None:
    """If there is no room for a request's cache, that request must wait or get an error. An allocation must never fail."""
    decoder = decoder_of("llama")
    per_slot = 2 * 3 * 2 * 12 * 8  # keys and values, layers, heads, size, bytes
    small = [decoder.request(prompt(i), max_new_tokens=10) for i in range(4)]
    large = decoder.request(prompt(3), max_new_tokens=100)
    assert len(prompt(3)) + 100 > 120
    engine = decoder.engine(max_cache_bytes=128 * 2 * per_slot)
    for request in small:
        engine.add(request)
    engine.step()
    assert engine.running == 2, "two lines of 128 slots are all there is room for"
    assert len(texts(engine)) == 4
    engine = decoder.engine(max_cache_bytes=64 * per_slot)
    number = engine.add(large)
    assert texts(engine) == {} and "GB" in str(engine.failed[number])


@pytest.mark.parametrize("family", ["llama", "lfm2", "minimax"])
def test_lines_of_short_rows_and_slots_of_a_long_one_do_not_multiply(family: str) -> None:
    """A server decodes many short requests, then a long one, then many short ones. Each kind fits into the limit alone, so the
    cache must fit too. No text changes."""
    decoder = Decoder(tiny_model(family), mask_id=MASK, trained_k=6, eos_ids=[EOS])
    decoder.max_positions = None
    short = [decoder.request(prompt(i), policy=Exact(0.1), max_new_tokens=12, row=i) for i in range(12)]
    long = [decoder.request(prompt(5) * 16, policy=Exact(0.1), max_new_tokens=30, eos_ids=frozenset())]
    alone = []
    for requests in (short, long):
        engine = decoder.engine()
        for request in requests:
            engine.add(request)
        found = texts(engine)
        alone.append([found[i] for i in range(len(requests))])
    slot = engine._batch.cache.slot_bytes() or 0
    limit = 12 * (128 * slot + 2 * engine._batch.cache.line_bytes())
    engine = decoder.engine(max_rows=12, max_cache_bytes=limit)
    for kind in (0, 1, 0, 1):
        numbers = [engine.add(request) for request in (short, long)[kind]]
        found = {number: [] for number in numbers}
        while engine.busy:
            for chunk in engine.step():
                found[chunk.row] += chunk.token_ids
            cache = engine._batch.cache
            assert cache.lines * (cache.capacity * slot + cache.line_bytes()) <= limit
        assert [found[number] for number in numbers] == alone[kind] and not engine.failed


def test_rows_whose_common_choice_fails_choose_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that are not numbers can end the choice of all rows that choose in the same way. Guards against an error of the
    whole pass, which would end the rows of other users too: only the row with these scores may fail."""
    decoder = decoder_of("qwen3")
    requests = [
        decoder.request(
            prompt(i), policy=Exact(0.1), max_new_tokens=8, sampling=Sampling(temperature=0.8, seed=i), row=i
        )
        for i in range(3)
    ]
    together, apart = decoder.engine(), decoder.engine()
    for request in requests:
        together.add(request)
        apart.add(request)
    expected = texts(together)

    def fails(*_: object) -> None:
        raise IndexError("argmax(): Expected reduction dim 1 to have non-zero size.")

    def fails_in_one(row: Row, logits: torch.Tensor) -> object:
        return fails() if row.number == 1 else choose(row, logits)

    monkeypatch.setattr(step_module, "choose_alike", fails)
    monkeypatch.setattr(step_module, "choose", fails_in_one)
    assert texts(apart) == {0: expected[0], 2: expected[2]}
    assert "logits processor failed" in str(apart.failed[1])


class _Erratic(Pace):
    """Changes the number of masks and branches in every step. Branches follow a step with all masks, which leaves drafts."""

    steps = 0

    def observe(self, rows: int, tokens: int, seconds: float | None) -> None:
        self.steps += 1

    def level(self, rows: int) -> Level:
        return (Level(5), Level(5, 2), Level(0), Level(0), Level(3), Level(1))[self.steps % 6]


@pytest.mark.parametrize("pace", [Pace, _Erratic])
def test_a_paced_engine_writes_the_same_text(pace: type[Pace], monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of masks that are fed may affect the speed only."""
    decoder = decoder_of("qwen3")
    requests = [decoder.request(prompt(i), policy=Exact(0.1), max_new_tokens=30) for i in range(6)]
    plain = decoder.engine(max_rows=4)
    paced = decoder.engine(max_rows=4, pace=pace(5, 2))
    fed = recorded_branches(monkeypatch)
    for request in requests:
        plain.add(request)
        paced.add(request)
    assert texts(paced) == texts(plain)
    assert pace is Pace or any(fed)


def test_a_request_is_plain_and_greedy_unless_it_says_more() -> None:
    """Servers create a `Request` directly, so its defaults must be those of plain greedy decoding."""
    request = Request([1], NextToken(), 1)
    assert request.seed is None and not request.processors and not request.criteria and not request.keep_scores


def test_the_cache_grows_a_few_times_and_a_row_that_leaves_moves_one_line(monkeypatch) -> None:
    """Guards against copying the whole cache every 128 slots, and against moving every line after one that becomes free."""
    decoder = decoder_of("llama")
    decoder.max_positions = None
    engine = decoder.engine(max_rows=8)
    cache = engine._batch.cache
    grown, moved = [], []
    grow, move = cache.grow, cache.move
    monkeypatch.setattr(cache, "grow", lambda *to: grown.append((cache.lines, cache.capacity)) or grow(*to))
    monkeypatch.setattr(cache, "move", lambda lines: moved.append(lines) or move(lines))
    for i in range(8):
        engine.add(decoder.request(prompt(3), policy=NextToken(), max_new_tokens=6 + i, eos_ids=frozenset(), row=i))
    while engine.busy:
        engine.step()
    sizes = [len(lines) for lines in moved]
    assert max(sizes) == 1 and sum(sizes) == 4, "the last one takes the place of a first one that ends, four times"
    moved.clear()
    engine.add(decoder.request(prompt(3), policy=NextToken(), max_new_tokens=1500, eos_ids=frozenset()))
    while engine.busy:
        engine.step()
    assert sorted({capacity for _, capacity in grown} | {cache.capacity}) == [0, 128, 256, 512, 1024, 1536]
    assert cache.lines == 8


def test_rows_prefill_in_the_order_in_which_they_came() -> None:
    """A line that moves into a free place must not overtake rows that wait for their prompts to be read."""
    decoder = decoder_of("llama")
    engine = decoder.engine(max_rows=6, prefill_tokens=8)
    for new in (2, 9):
        engine.add(decoder.request([7, 8], policy=NextToken(), max_new_tokens=new, eos_ids=frozenset()))
    engine.step()
    late = [
        engine.add(decoder.request([7] * 8, policy=NextToken(), max_new_tokens=4, eos_ids=frozenset()))
        for _ in range(4)
    ]
    began = []
    while engine.busy:
        began += [chunk.row for chunk in engine.step() if chunk.row in late and chunk.row not in began]
    assert began == late
