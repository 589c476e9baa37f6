"""The choice of the number of masks, in simulated servers whose costs and acceptance rates are known. No clock is
used."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from multitoken.decoding.branches import PACED
from multitoken.decoding.pace import Pace, Record

PLACES, BRANCH = 15, 8


@dataclass
class Server:
    """Rows whose drafts are accepted at random. cost(tokens fed, masks among them): the seconds of a step. holds: how
    often a draft of each row is accepted."""

    cost: Callable[[int, int], float]
    holds: list[float]
    seed: int = 0
    noise: float = 0.15
    luck: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.luck = random.Random(self.seed)
        self.drafts = [0] * len(self.holds)

    def step(self, masks: list[int], branches: int = 0) -> tuple[int, list[tuple[int, int]], float]:
        """Returns (tokens, each row's block as (masks fed, drafts accepted), seconds). The first drafts are the most
        likely to be refused, so the branches follow them."""
        fed = sum(1 + d + m + BRANCH * min(branches, d) for d, m in zip(self.drafts, masks, strict=True))
        seconds = self.cost(fed, sum(masks)) * math.exp(
            self.luck.gauss(-(self.noise**2) / 2, self.noise)
        )  # 1 on average
        tokens, settled = 0, []
        for i, (drafts, row_masks) in enumerate(zip(list(self.drafts), masks, strict=True)):
            held = 0
            while held < drafts and self.luck.random() < self.holds[i]:
                held += 1
            tokens += 1 + held
            settled.append((drafts, held))
            self.drafts[i] = row_masks if held == drafts else BRANCH if held < branches else 0
        return tokens, settled, seconds


def paced(server: Server, pace: Pace, records: list[Record], steps: int):
    """Run some steps. Returns their [(tokens, seconds, masks of each row)]."""
    trace = []
    for _ in range(steps):
        masks = pace.masks(records)
        tokens, settled, seconds = server.step(masks, pace.level(len(records)).branches)
        for record, (fed, held) in zip(records, settled, strict=True):
            record.settle(fed, held)
        pace.observe(len(records), tokens, seconds)
        trace.append((tokens, seconds, masks))
    return trace


def rate(trace) -> float:
    return sum(step[0] for step in trace) / sum(step[1] for step in trace)


def constant(server: Server, masks: int, steps: int = 3000, branches: int = 0) -> float:
    done = (server.step([masks] * len(server.holds), branches) for _ in range(steps))
    return rate([(tokens, seconds) for tokens, _, seconds in done])


def best(cost, holds: list[float], branches: int = 0) -> float:
    levels = [(n, 0) for n in (0, 1, 3, 7, 15)] + [(PLACES, branches)]
    return max(constant(Server(cost, holds, noise=0), masks, branches=n) for masks, n in levels)


def flat(fed: int, masks: int) -> float:
    return 0.004 + 0.00005 * fed + (0.001 if masks else 0)


def steep(fed: int, masks: int) -> float:
    return 0.002 + 0.0004 * fed + (0.0005 if masks else 0)


def costly_first_mask(fed: int, masks: int) -> float:
    """As measured in vLLM on a CPU with eight requests: one mask per row triples the time of a step, and fifteen masks
    take less than twice that time."""
    return 0.009 + 0.00008 * fed if masks else 0.003 + 0.00003 * fed


def free(fed: int, masks: int) -> float:
    """A large model on an accelerator with few requests: its weights are read once per step, whatever is fed."""
    return 0.01


CASES = {
    "eight rows, a costly first mask": (costly_first_mask, [0.97] * 8),
    "thirty-two rows, a costly first mask": (costly_first_mask, [0.6] * 32),
    "one row that reasons": (flat, [0.9]),
    "one row that counts badly": (flat, [0.05]),
    "eight rows, costly tokens": (steep, [0.6] * 8),
    "thirty-two rows, costly tokens, poor drafts": (steep, [0.3] * 32),
    "thirty-two rows, cheap tokens": (flat, [0.85] * 32),
}


def share_of_the_best(cost: Callable[[int, int], float], holds: list[float], branches: int, seeds: int = 8) -> float:
    """Tokens per second as a share of the best constant choice's, after 200 steps. It is a mean over seeds, because
    single runs of 1,000 steps differ by more than the bounds."""
    found = []
    for seed in range(seeds):
        pace, records = Pace(PLACES, branches), [Record() for _ in holds]
        found.append(rate(paced(Server(cost, holds, seed), pace, records, 1200)[200:]))
    return sum(found) / len(found) / best(cost, holds, branches)


@pytest.mark.parametrize("name", CASES)
def test_near_the_best_constant_choice_after_200_steps(name: str) -> None:
    assert share_of_the_best(*CASES[name], branches=0) > 0.95


@pytest.mark.parametrize("name", CASES)
def test_near_it_with_one_choice_more(name: str) -> None:
    """Branches pay off in none of these cases, and a step with masks shows this before branches have a trial."""
    assert share_of_the_best(*CASES[name], branches=PACED) > 0.95


@pytest.mark.parametrize("holds", [[0.8], [0.7] * 4], ids=len)
def test_near_the_best_where_tokens_are_free(holds: list[float]) -> None:
    assert share_of_the_best(free, holds, branches=PACED, seeds=16) > 0.95


@pytest.mark.parametrize("branches", [0, PACED])
@pytest.mark.parametrize("name", CASES)
def test_never_below_plain_decoding(name: str, branches: int) -> None:
    """At most two hundredths below plain decoding over 1,000 steps, including trials and the first steps."""
    cost, holds = CASES[name]
    plain = constant(Server(cost, holds, noise=0), 0)
    found = [
        rate(paced(Server(cost, holds, seed), Pace(PLACES, branches), [Record() for _ in holds], 1000))
        for seed in range(8)
    ]
    assert sum(found) / len(found) > 0.98 * plain


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_costs_that_change_in_the_middle(factor: float) -> None:
    """Masks become expensive or cheap while the server runs, so that earlier measurements are wrong."""
    state = {"factor": 1.0}

    def cost(fed: int, masks: int) -> float:
        return 0.002 + 0.0002 * (fed - masks) + state["factor"] * (0.0003 * masks + 0.0005 * (masks > 0))

    found, holds = [], [0.6] * 8
    for seed in range(8):
        state["factor"] = 1.0
        server, pace, records = Server(cost, holds, seed), Pace(PLACES), [Record() for _ in holds]
        paced(server, pace, records, 400)
        state["factor"] = factor
        found.append(rate(paced(server, pace, records, 1200)[200:]))
    assert sum(found) / len(found) > 0.95 * best(cost, holds)


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.05), (0.05, 0.9)])
def test_acceptance_that_jumps(before: float, after: float) -> None:
    """The kind of text changes: masks stop paying off, or begin to."""
    found = []
    for seed in range(8):
        server, pace, records = Server(steep, [before] * 4, seed), Pace(PLACES), [Record() for _ in range(4)]
        paced(server, pace, records, 400)
        server.holds = [after] * 4
        found.append(rate(paced(server, pace, records, 1200)[200:]))
    assert sum(found) / len(found) > 0.95 * best(steep, [after] * 4)


def test_a_machine_that_stalls() -> None:
    """One step in fifty takes thirty times as long, whatever it feeds. Such steps must not determine the choice."""
    rng = random.Random(1)

    def cost(fed: int, masks: int) -> float:
        return flat(fed, masks) * (30 if rng.random() < 0.02 else 1)

    pace, records, server = Pace(PLACES), [Record()], Server(cost, [0.9], 3)
    paced(server, pace, records, 200)
    fed = [masks[0] for _, _, masks in paced(server, pace, records, 600)]
    assert sum(n >= 7 for n in fed) > 0.8 * len(fed)


@pytest.mark.parametrize("rows", [1, 8])
def test_a_machine_that_is_busy_at_first(rows: int) -> None:
    """Measurements from when the machine was busy must not exclude for ever a level that is fast now."""
    found = []
    for seed in range(8):
        state = {"factor": 5.0}

        def cost(fed: int, masks: int, state: dict[str, float] = state) -> float:
            return state["factor"] * costly_first_mask(fed, masks)

        server, pace, records = (
            Server(cost, [0.97] * rows, seed, noise=0.4),
            Pace(PLACES),
            [Record() for _ in range(rows)],
        )
        paced(server, pace, records, 60)
        state["factor"], server.noise = 1.0, 0.15
        found.append(rate(paced(server, pace, records, 8000)[6000:]))
    assert sum(found) / len(found) > 0.95 * best(costly_first_mask, [0.97] * rows)


def test_rows_that_differ() -> None:
    """Of eight rows two reason and six count. Each must be fed as many masks as its own blocks are worth."""
    holds = [0.9, 0.9] + [0.02] * 6

    def cost(fed: int, masks: int) -> float:
        return 0.004 + 0.0001 * fed

    pace, records, server = Pace(PLACES), [Record() for _ in holds], Server(cost, holds)
    trace = paced(server, pace, records, 1000)
    fed = [sum(masks[i] for _, _, masks in trace) for i in range(len(holds))]
    assert min(fed[:2]) > 2 * max(fed[2:])
    assert rate(trace[200:]) > 1.05 * best(cost, holds)


def test_rows_that_come_and_go() -> None:
    """Short answers in batches whose size changes all the time: what is learned at one size must be used at the
    next."""
    rng, pace = random.Random(0), Pace(PLACES)
    total = {"tokens": 0, "seconds": 0.0}
    for answer in range(60):
        rows = rng.choice([1, 2, 4])
        server, records = Server(flat, [0.9] * rows, answer), [Record() for _ in range(rows)]
        for tokens, seconds, _ in paced(server, pace, records, 12):
            if answer >= 10:
                total["tokens"] += tokens / rows
                total["seconds"] += seconds
    plain = constant(Server(flat, [0.9], noise=0), 0)
    assert total["tokens"] / total["seconds"] > 2 * plain


@pytest.mark.parametrize("cost", [costly_first_mask, steep])
def test_requests_that_drain_through_all_sizes(cost: Callable[[int, int], float]) -> None:
    """Waves of requests: the losses allowed at each batch size must not add up to more than is allowed at one."""
    plain = {rows: 1 / constant(Server(cost, [0.3] * rows, noise=0), 0, 100) for rows in (32, 20, 12, 6, 3, 1)}
    found = []
    for seed in range(8):
        pace, worth, spent = Pace(PLACES), 0.0, 0.0
        for wave in range(12):
            for rows in plain:
                server, records = Server(cost, [0.3] * rows, 100 * seed + wave), [Record() for _ in range(rows)]
                for tokens, seconds, _ in paced(server, pace, records, 40 if rows == 32 else 10):
                    worth, spent = worth + tokens * plain[rows], spent + seconds
        found.append(worth / spent)
    assert sum(found) / len(found) > 0.97


@pytest.mark.parametrize(("cost", "used"), [(free, True), (steep, False)])
def test_branches_where_they_pay(cost: Callable[[int, int], float], used: bool) -> None:
    pace, records = Pace(PLACES, PACED), [Record()]
    server, fed = Server(cost, [0.8], 1), []
    for _ in range(40):
        paced(server, pace, records, 20)
        fed.append(pace.level(1).branches)
    assert sum(n == PACED for n in fed[10:]) > 20 if used else not any(fed)


def test_a_block_too_short_for_branches_has_none() -> None:
    """Each branch follows a draft of its own."""
    assert [Pace(places, 4).most_branches for places in (3, 4, 5, 15)] == [0, 0, 4, 4]
    assert Pace(15).most_branches == 0


def test_the_first_answer_is_fed_all_masks() -> None:
    """The few steps of a short answer must not be spent on trials."""
    pace = Pace(PLACES)
    fed = []
    for _ in range(6):
        fed.append(pace.level(1).masks)
        pace.observe(1, 6, 0.01)
    assert fed == [PLACES] * 6
