"""Has a step become slower? `python -m benchmarks.revisions BEFORE [AFTER]` compares the steps of two git revisions (ten minutes).

Each revision is checked out into a temporary folder, and a process of its own runs its code: the embedded base under next-token decoding and the
checkpoint of `full` under Exact 0.7 (or `--base` and `--adapted`), with one prompt and with eight prompts at a time. The two processes
alternate in turns of one prompt, or of eight, so that a machine that becomes slower does so for both. Measured are the median step of a turn,
and the part of it outside the model's forward pass. Ratios are medians over the turns, with their 95% intervals. The last line is JSON.
"""

import argparse
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.checked_out import checked_out
from benchmarks.child import Child
from benchmarks.rivals import rival
from benchmarks.tables import with_interval
from multitoken.checkpoints.provenance import provenance
from multitoken.evaluation.statistics import ratio_interval
from multitoken.quickstart.embedded import checkpoint, embedded_task

PROMPTS, NEW, AT_ONCE = 16, 80, (1, 8)
KINDS = ("next-token", "exact")

# Runs with the code of either revision. An input line is a turn: [kind, prompts]. An output line is [ms of a step, ms outside the pass].
WORKER = """
import json, sys, time
from statistics import median
from multitoken.decoding import Exact, NextToken
from multitoken.models.model import Model

given = json.loads(sys.stdin.readline())
kinds, spent = {}, [0.0]
for kind, policy in (("next-token", NextToken()), ("exact", Exact(0.7))):
    model = Model.load(given[kind], dtype="float32")
    def timed(*args, forward=model.hf.forward, **options):
        started = time.perf_counter()
        out = forward(*args, **options)
        spent[0] += time.perf_counter() - started
        return out
    model.hf.forward = timed
    kinds[kind] = model, policy
for line in sys.stdin:
    kind, prompts = json.loads(line)
    model, policy = kinds[kind]
    engine, steps = model.decoder.engine(), []
    for prompt in prompts:
        engine.add(model.decoder.request(model.encode(prompt), policy=policy, max_new_tokens=given["new"]))
    engine.step()
    while engine.busy:
        spent[0], started = 0.0, time.perf_counter()
        engine.step()
        whole = time.perf_counter() - started
        steps.append((whole, whole - spent[0]))
    print(json.dumps([1e3 * median(step[i] for step in steps) for i in (0, 1)]), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="a git revision")
    parser.add_argument("after", nargs="?", default="HEAD")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base", type=Path, default=checkpoint("base"), help="a model that answers word problems")
    parser.add_argument("--adapted", type=Path, help="a model that was adapted from --base")
    a = parser.parse_args()
    texts = [question.prompt for question in embedded_task("word-problems", PROMPTS).questions]
    given = {"next-token": str(a.base.resolve()), "exact": str((a.adapted or rival("full")).resolve()), "new": NEW}
    turns: dict[str, list[tuple[list[float], list[float]]]] = {}
    with ExitStack() as stack:
        workers = []
        for revision in (a.before, a.after):
            workers.append(Child([sys.executable, "-c", WORKER], stack.enter_context(checked_out(revision))))
            stack.callback(workers[-1].stop)
            workers[-1].say(given)
        for number in range(a.rounds + 1):  # the first one warms up
            for kind in KINDS:
                for at_once in AT_ONCE:
                    for first in range(0, PROMPTS, at_once):
                        prompts = texts[first : first + at_once]
                        if (number + first // at_once) % 2:
                            after, before = (worker.ask([kind, prompts]) for worker in reversed(workers))
                        else:
                            before, after = (worker.ask([kind, prompts]) for worker in workers)
                        if number:
                            turns.setdefault(f"{kind}, {at_once}", []).append((before, after))
            print(f"round {number} of {a.rounds}, {time.strftime('%H:%M')}", file=sys.stderr, flush=True)
    print(
        f"| policy, prompts at once | at {a.before}, ms | at {a.after} | ratio | outside the pass, before | after | ratio |"
    )
    print("|---|---|---|---|---|---|---|")
    results = {}
    for kind, pairs in turns.items():
        cells = []
        for part in (0, 1):
            ratio = ratio_interval([(after[part], before[part]) for before, after in pairs])
            old, new = (median(pair[i][part] for pair in pairs) for i in (0, 1))
            cells.append(f"{old:.2f} | {new:.2f} | {with_interval(ratio.median, ratio.interval, 3)}")
            results[f"{kind}, {('step', 'beside the pass')[part]}"] = [[b[part], c[part]] for b, c in pairs]
        print(f"| {kind} | {cells[0]} | {cells[1]} |")
    print(json.dumps({"results": results, "revisions": [a.before, a.after], **provenance()}))


if __name__ == "__main__":
    main()
