"""The time of a decoding step and of a training step on an accelerator, at the shapes of real models, on random weights in bfloat16.

    python -m benchmarks.gpu                       writes docs/gpu.md and docs/gpu.png; at most nine minutes on one GPU
    python -m benchmarks.gpu --output DIR          writes the page to another folder; on a CPU it runs the same code with tiny shapes

A step of width w feeds one token and w - 1 masks, after a context that is in the cache. It is compared with transformers' `generate`, which
decodes one token per pass with the same model. Random weights draft nothing, so the page has times and no tokens per step; the other pages
have those.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from benchmarks.training_rows import write_rows
from multitoken.checkpoints.atomic import write_text
from multitoken.checkpoints.provenance import provenance
from multitoken.config import make_config
from multitoken.decoding import Exact, NextToken
from multitoken.decoding.gate import GatedAdapter, adaptable_layers
from multitoken.decoding.loop import Decoder
from multitoken.evaluation.run import evaluate
from multitoken.models.model import Model
from multitoken.models.placement import find_device
from multitoken.quickstart.embedded import checkpoint, embedded_task
from multitoken.training.plan import plan

WIDTHS = (1, 2, 4, 8, 16)
METHODS = ("gated", "lora", "full")
_QWEN3: dict[str, Any] = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
SHAPES: dict[str, dict[str, Any]] = {
    "0.6 B": _QWEN3
    | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "tie_word_embeddings": True},
    "4 B": _QWEN3
    | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32, "tie_word_embeddings": True},
    "8 B": _QWEN3
    | {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
}  # fmt: skip
_SMALL: dict[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
TINY: dict[str, dict[str, Any]] = {
    "tiny": _SMALL | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    "tiny, wider": _SMALL | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2},
}


def random_model(shape: dict[str, Any], device: torch.device) -> PreTrainedModel:
    """A Qwen3 of this shape with random weights, which are created on the device and in bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return Qwen3ForCausalLM(Qwen3Config(**shape, eos_token_id=None, bos_token_id=None, pad_token_id=0)).eval()
    finally:
        torch.set_default_dtype(before)


def gated_decoder(model: PreTrainedModel, rank: int) -> Decoder:
    """A decoder with an untrained adapter at every linear layer. It computes as much as with a trained one."""
    mask_id = model.config.vocab_size - 1
    adapter = GatedAdapter(model, mask_id=mask_id, rank=rank, layers=adaptable_layers(model)).to(model.device)
    adapter.eval().requires_grad_(False).attach_for_decoding(model)
    return Decoder(model, mask_id=mask_id, trained_k=max(WIDTHS))


def seconds_of_steps(decoder: Decoder, context: int, width: int, steps: int) -> float:
    """The median time of a step of this width. At a threshold of 1 no draft of random weights is kept, so every step feeds one token and
    masks."""
    policy = Exact(1.0, k=width) if width > 1 else NextToken()
    engine = decoder.engine()
    prompt = [1 + i % 200 for i in range(context)]
    engine.add(decoder.request(prompt, policy=policy, max_new_tokens=steps + 8))
    spent = []
    while engine.busy:
        started = time.perf_counter()
        engine.step()  # ends with a transfer to the host, so the device has finished
        spent.append(time.perf_counter() - started)
    return median(spent[5:])


@torch.inference_mode()
def seconds_of_generate(model: Any, context: int, steps: int) -> float:
    """Seconds per pass of transformers' own greedy decoding: the time of a longer answer minus that of a shorter one, per extra token."""
    ids = torch.tensor([[1 + i % 200 for i in range(context)]], device=model.device)
    taken = []
    for new in (4, 4 + steps, 4, 4 + steps):
        started = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False).tolist()
        taken.append(time.perf_counter() - started)
    return (taken[3] - taken[2]) / steps


def decoding_table(
    shapes: dict[str, dict[str, Any]], device: torch.device, contexts: tuple[int, ...], steps: int
) -> list[dict[str, Any]]:
    rows = []
    for name, shape in shapes.items():
        model = random_model(shape, device)
        theirs = {context: seconds_of_generate(model, context, steps) for context in contexts}
        decoder = gated_decoder(model, rank=64)
        for context in contexts:
            ours = {width: seconds_of_steps(decoder, context, width, steps) for width in WIDTHS}
            rows.append(
                {
                    "model": name,
                    "context": context,
                    "generate_ms": 1e3 * theirs[context],
                    "ms": {w: 1e3 * s for w, s in ours.items()},
                }
            )
            print(rows[-1], flush=True)
        del model, decoder
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def training_table(device: torch.device) -> list[dict[str, Any]]:
    """A training step of each method on the embedded base, measured by the dry run: seconds and peak memory."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        write_rows(data, 64, "train")
        for method in METHODS:
            options: dict[str, Any] = {
                "model": str(checkpoint("base")),
                "data": str(data),
                "output": str(Path(folder) / method),
            }
            found = plan(make_config(**options, method=method, steps=10, device=str(device)), Console(quiet=True))
            rows.append(
                {
                    "method": method,
                    "seconds": found.seconds_per_step,
                    "memory_mb": {k: v / 1e6 for k, v in found.memory.items()},
                }
            )
            print(rows[-1], flush=True)
    return rows


def exactness(device: torch.device, prompts: int) -> dict[str, int]:
    """How many outputs of the embedded model in bfloat16 under Exact equal its own next-token decoding."""
    model = Model.load(checkpoint("gated"), device=device, dtype="bfloat16")
    row = evaluate(
        {"adapted": model}, embedded_task("word-problems", prompts), {"Exact 0.7": Exact(0.7)}, batch_size=16
    )[-1]
    return {"prompts": row.prompts, "identical": row.identical_to_own_next_token, "ties": row.own_ties}


def page(
    rows: list[dict[str, Any]],
    training: list[dict[str, Any]],
    exact: dict[str, int],
    record: dict[str, Any],
    picture: str,
) -> str:
    machine = record["machine"]
    where = machine.get("gpu") or f"{machine['cpu']} (no GPU: tiny shapes, which only show that the command runs)"
    lines = [
        "# On a GPU",
        "",
        f"`python -m benchmarks.gpu` on {where}, torch {record['versions']['torch']}, transformers {record['versions']['transformers']}, "
        f"{record['date'][:10]}. Random weights in bfloat16, a gated adapter of rank 64 over all linear layers, one row. A step of width w feeds one "
        "token and w - 1 masks. It is compared with a pass of transformers' `generate`, which decodes one token.",
        "",
        "| model | context | `generate`, ms per pass | " + " | ".join(f"width {w}, ms" for w in WIDTHS) + " |",
        "|---|---:|---:|" + "---:|" * len(WIDTHS),
        *(
            f"| {r['model']} | {r['context']:,} | {r['generate_ms']:.2f} | "
            + " | ".join(f"{r['ms'][w]:.2f}" for w in WIDTHS)
            + " |"
            for r in rows
        ),
        "",
        f"![Milliseconds of a step by its width]({picture})",
        "",
        "Training steps of the embedded base, measured by a dry run:",
        "",
        "| method | seconds per step | memory, MB |",
        "|---|---:|---|",
        *(
            f"| {t['method']} | {t['seconds']:.3f} | "
            + ", ".join(f"{k} {v:,.0f}" for k, v in t["memory_mb"].items())
            + " |"
            for t in training
        ),
        "",
        f"The embedded gated adapter in bfloat16, Exact 0.7, {exact['prompts']} word problems: {exact['identical']} outputs are identical to its own "
        f"next-token decoding, {exact['ties']} first differ at a tie, {exact['prompts'] - exact['identical'] - exact['ties']} differ.",
        "",
    ]
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    shortest = min(row["context"] for row in rows)
    for row in rows:
        if row["context"] == shortest:
            axes.plot(WIDTHS, [row["ms"][w] for w in WIDTHS], marker="o", label=row["model"])
    axes.set(
        xlabel="width of a step (one token and masks)",
        ylabel="milliseconds",
        ylim=(0, None),
        title=f"After {shortest:,} tokens",
    )
    axes.set_xticks(WIDTHS)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


@contextmanager
def _stage(name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs"))
    a = parser.parse_args()
    device = find_device("auto")
    is_gpu = device.type != "cpu"
    if not is_gpu and a.output == Path("docs"):
        parser.error("no accelerator was found; to try the command on a CPU, name another folder with --output")
    a.output.mkdir(parents=True, exist_ok=True)
    with _stage("decoding"):
        rows = decoding_table(
            SHAPES if is_gpu else TINY, device, (256, 2048, 8192) if is_gpu else (64, 256), 24 if is_gpu else 6
        )
    with _stage("training"):
        training = training_table(device)
    with _stage("exactness"):
        exact = exactness(device, 200 if is_gpu else 8)
    record = provenance()
    draw(rows, a.output / "gpu.png")
    write_text(a.output / "gpu.md", page(rows, training, exact, record, "gpu.png"))
    print(json.dumps({"decoding": rows, "training": training, "exactness": exact, "provenance": record}))


if __name__ == "__main__":
    main()
