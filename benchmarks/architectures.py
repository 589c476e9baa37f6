"""Tests every family that transformers knows, as a tiny random model: what works, and the largest difference in each test.

    python -m benchmarks.architectures [FAMILY ...] [--output docs/architectures.md]

Without names it tests all of `benchmarks.tiny_families`, which takes about ten minutes on one core. The table is written into
the page between its two marks; the text around it stays.
"""

import argparse
import datetime
import logging
import platform
import sys
import warnings
from pathlib import Path

import torch
import transformers

from benchmarks.tiny_families import FAMILIES, MASK, tiny_model
from multitoken.decoding.mixers import Mixers
from multitoken.models.check import Finding, check_model, uses

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
# The columns, one for each test of `check_model`, in the same order.
COLUMNS = (
    "packed",
    "gradients",
    "cached",
    "far",
    "Exact",
    "`generate`",
    "batch",
    "sampled",
    "real under gate",
    "Exact under gate",
)


def row(family: str, findings: list[Finding], layers: str) -> str:
    can = dict(uses(findings))
    if not any(can.values()):
        layers = "none known" if layers == "attention" else layers
        return f"| {family} | {layers} | refused |" + " |" * len(COLUMNS)
    verdict = "all" if all(can.values()) else ", ".join(use for use, yes in can.items() if yes) + " only"
    cells = [_cell(finding) for _, finding in zip(COLUMNS, findings, strict=True)]
    return f"| {family} | {layers} | {verdict} | " + " | ".join(cells) + " |"


def _cell(finding: Finding) -> str:
    shown = finding.shown.removesuffix(" tokens")
    return shown if finding.passed and not finding.note else f"**{shown}**"


def mixers_of(model: transformers.PreTrainedModel) -> str:
    """The kinds of recurrent layers; "attention" if there are none."""
    mixers = Mixers.of(model)
    return "attention" if mixers is None else ", ".join(sorted({mixer.kind.name for mixer in mixers.all}))


def survey(families: list[str]) -> tuple[list[str], dict[str, str]]:
    """The lines of the table, and for a family that is refused, fails a test or has a note, the reason or the note."""
    lines, reasons = [], {}
    for family in families:
        model = tiny_model(family)
        layers = mixers_of(model)
        findings = check_model(model, MASK)
        lines.append(row(family, findings, layers))
        said = next((f.note for f in findings if not f.passed and f.note), "") or next(
            (f.note for f in findings if f.note), ""
        )
        if said or not all(f.passed for f in findings):
            reasons[family] = said or "wrong in " + ", ".join(f.test for f in findings if not f.passed)
        print(lines[-1], reasons.get(family, ""), flush=True)
    return lines, reasons


def page(text: str, lines: list[str], reasons: dict[str, str], command: str) -> str:
    """The page `text` with this table between its marks."""
    whole = sum("| all |" in line for line in lines)
    head = "| family | layers | works | " + " | ".join(COLUMNS) + " |"
    made = (
        f"`{command}` on 1 core of {_processor()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{datetime.date.today()}: {len(lines)} families, {whole} right in everything."
    )
    said = [f"- **{family}**: {reason}" for family, reason in reasons.items()]
    table = [made, "", head, "|" + "---|" * (len(COLUMNS) + 3), *lines, "", *said]
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + "\n".join(table) + "\n" + END + after


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return (
        f"an {names[0].split(':')[1].split()[0]} {names[0].split(':')[1].split()[1]}" if names else platform.machine()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    lines, reasons = survey(options.families)
    if options.output is not None:
        command = "python -m benchmarks.architectures " + " ".join(sys.argv[1:])
        options.output.write_text(
            page(options.output.read_text(encoding="utf-8"), lines, reasons, command), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
