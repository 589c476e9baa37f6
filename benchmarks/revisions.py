"""Has a step become slower? `python -m benchmarks.revisions BEFORE [AFTER]`: two git revisions' steps, interleaved (ten minutes).

Each revision is checked out beside this one, and a process of its own runs its code: the embedded base under next-token decoding and
the checkpoint of `full` under Exact 0.7, one prompt at a time and eight side by side. Counted are the median step, and in it what is
not the model's forward pass. Ratios are medians over the rounds, with their range. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.rivals import rival
from multitoken.checkpoints.provenance import provenance
from multitoken.quickstart.embedded import checkpoint, embedded_task

ROOT = Path(__file__).parents[1]
PROMPTS, NEW, AT_ONCE = 16, 80, (1, 8)

# What every revision understands.
WORKER = """
import json, sys, time
from statistics import median
from multitoken.decoding import Exact, NextToken
from multitoken.models.model import Model

given = json.loads(sys.stdin.read())
found = {}
for name, policy in (("base", NextToken()), ("full", Exact(0.7))):
    model = Model.load(given[name], dtype="float32")
    spent, forward = [0.0], model.hf.forward
    def timed(*args, **options):
        started = time.perf_counter()
        out = forward(*args, **options)
        spent[0] += time.perf_counter() - started
        return out
    model.hf.forward = timed
    prompts = [model.encode(text) for text in given["prompts"]]
    for at_once in given["at_once"]:
        steps = []
        for first in range(0, len(prompts), at_once):
            engine = model.decoder.engine()
            for prompt in prompts[first : first + at_once]:
                engine.add(model.decoder.request(prompt, policy=policy, max_new_tokens=given["new"]))
            engine.step()
            while engine.busy:
                spent[0], started = 0.0, time.perf_counter()
                engine.step()
                whole = time.perf_counter() - started
                steps.append((whole, whole - spent[0]))
        steps = steps[len(steps) // 4 :]
        found[f"{policy.name}, {at_once}"] = [1e3 * median(step[i] for step in steps) for i in (0, 1)]
print(json.dumps(found))
"""


def measure(source: Path, given: dict) -> dict[str, list[float]]:
    """{kind: [milliseconds of a step, of them beside the forward pass]} with the code that lies there."""
    environment = os.environ | {"PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        input=json.dumps(given),
        env=environment,
        capture_output=True,
        text=True,
        cwd=source,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="a git revision")
    parser.add_argument("after", nargs="?", default="HEAD")
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    texts = [question.prompt for question in embedded_task("word-problems", PROMPTS).questions]
    given = {"base": str(checkpoint("base")), "full": str(rival("full")), "prompts": texts, "new": NEW}
    given |= {"at_once": AT_ONCE}
    sources: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as folder:
        for revision in (a.before, a.after):
            place = Path(folder) / str(len(sources))
            git = ["git", "-C", str(ROOT), "worktree", "add", "--detach", "--quiet", str(place), revision]
            subprocess.run(git, check=True)
            sources[revision] = place / "src"
        try:
            rounds = []
            for number in range(a.rounds):
                order = list(sources) if number % 2 else list(reversed(sources))
                rounds.append({revision: measure(sources[revision], given) for revision in order})
                print(f"round {number + 1} of {a.rounds}, {time.strftime('%H:%M')}", file=sys.stderr, flush=True)
        finally:
            for source in sources.values():
                subprocess.run(
                    ["git", "-C", str(ROOT), "worktree", "remove", "--force", str(source.parent)], check=True
                )
    print(
        f"| policy, side by side | step at {a.before}, ms | at {a.after} | ratio | beside the pass, ms | then | ratio |"
    )
    print("|---|---|---|---|---|---|---|")
    results = {}
    for kind in rounds[0][a.before]:
        cells = []
        for part in (0, 1):
            pairs = [(each[a.before][kind][part], each[a.after][kind][part]) for each in rounds]
            before, after = (median(pair[i] for pair in pairs) for i in (0, 1))
            ratios = sorted(new / old for old, new in pairs)
            cells.append(f"{before:.2f} | {after:.2f} | {median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
            results[f"{kind}, {('step', 'beside the pass')[part]}"] = pairs
        print(f"| {kind} | {cells[0]} | {cells[1]} |")
    print(json.dumps({"results": results, "revisions": [a.before, a.after], **provenance()}))


if __name__ == "__main__":
    main()
