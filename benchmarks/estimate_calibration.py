"""What `multitoken estimate` is calibrated on: adapted models, each with its original, on prompts.

    python -m benchmarks.estimate_calibration
    python -m benchmarks.estimate_calibration --models ORIGINAL ADAPTED PROMPTS.jsonl --output gain_calibration.json

A point is the original's predictions along its own greedy responses (`evaluation/own_predictions.py`) and the tokens per
step that `Exact(0.5)` of the adapted model reaches on the same prompts. The embedded models give a point a task; each
`--models`, repeatable, gives one more. Prints the table of points and the line through them; with `--output` the file
that goes to `src/multitoken/evaluation/gain_calibration.json`.
"""

import argparse
from math import exp
from pathlib import Path

import torch

from benchmarks.word_problems import answer_all, tokens_per_step
from multitoken.checkpoints.atomic import write_text
from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import Exact
from multitoken.evaluation.estimate import summarise
from multitoken.evaluation.gain_calibration import Calibration, Point, write_points
from multitoken.evaluation.own_predictions import own_predictions
from multitoken.models.model import Model
from multitoken.quickstart.corpus import TASKS
from multitoken.quickstart.embedded import checkpoint, embedded_task
from multitoken.training.prompt_sample import sample_prompts

_POLICY = Exact(0.5)


def measure(name: str, original: Model, adapted: Model, prompts: list[list[int]], batch: int, new: int) -> Point:
    """The point of one pair of models on prompts (token ids)."""
    assert adapted.mtp is not None
    k = adapted.mtp.k
    summary = summarise(own_predictions(original, prompts, new), k)
    answers = answer_all(adapted, prompts, _POLICY, batch, new, name)
    return Point(
        name=name,
        model=original.name,
        parameters=sum(p.numel() for p in original.hf.parameters()),
        k=k,
        prompts=len(prompts),
        entropy=summary.entropy,
        easy_share=summary.easy_share,
        run_length=summary.run_length,
        tokens_per_step=tokens_per_step(answers),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs=3, action="append", default=[], metavar=("ORIGINAL", "ADAPTED", "PROMPTS"))
    parser.add_argument("--prompts", type=int, default=48, help="of each task and file")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--output", type=Path)
    a = parser.parse_args()

    original, adapted = Model.load(checkpoint("base")), Model.load(checkpoint("full"))
    points = []
    for task in TASKS:
        prompts = [original.encode(q.prompt) for q in embedded_task(task, a.prompts).questions]
        points.append(measure(task, original, adapted, prompts, a.batch, a.max_new_tokens))
    for original_path, adapted_path, file in a.models:
        original, adapted = Model.load(original_path), Model.load(adapted_path)
        assert original.decoder.max_positions is not None
        longest = original.decoder.max_positions - a.max_new_tokens
        prompts = sample_prompts(file, original.tokenizer, a.prompts, longest=longest).prompts
        points.append(measure(Path(file).stem, original, adapted, prompts, a.batch, a.max_new_tokens))

    calibration = Calibration(tuple(points))
    columns = ("prompts", "model", "k", "entropy", "easy tokens", "run length", "on the line", "Exact 0.5")
    print(f"| {' | '.join(columns)} |\n|---|---|---:|---:|---:|---:|---:|---:|")
    for p in points:
        line = calibration.expected(p.run_length, p.k)
        cells = (
            f"{p.prompts} {p.name}",
            p.model,
            p.k,
            f"{p.entropy:.2f}",
            f"{p.easy_share:.0%}",
            f"{p.run_length:.2f}",
        )
        print("| " + " | ".join(map(str, (*cells, f"{line:.2f}", f"{p.tokens_per_step:.2f}"))) + " |")
    with_line, without = calibration.leave_one_out()
    print(f"\n{calibration}: log(T - 1) = {calibration.intercept:.3f} + {calibration.slope:.3f} log(L)")
    print(
        f"residual: a factor of {exp(calibration.residual):.2f} in T - 1; at points left out a factor of "
        f"{exp(with_line):.2f} with the line, {exp(without):.2f} with the mean of the others"
    )
    if a.output is not None:
        facts = provenance(threads=torch.get_num_threads(), max_new_tokens=a.max_new_tokens)
        write_text(a.output, write_points(points, facts))


if __name__ == "__main__":
    main()
