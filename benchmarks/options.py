"""Command-line options that several benchmarks share: models with labels, and sampling."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from multitoken.decoding.sampling import Sampling
from multitoken.errors import MultitokenError, UsageError
from multitoken.evaluation.sampled import sampling_of
from multitoken.models.gated import find_base, is_adapter, read_adapter_config
from multitoken.models.model import Model


@dataclass(frozen=True)
class Entrant:
    """An adapted model, and the model whose next-token decoding its outputs must equal. For a gated adapter this is the bare
    base, which runs no hook of ours; otherwise it is the adapted weights themselves."""

    label: str
    adapted: Model
    plain: Model

    @property
    def is_gated(self) -> bool:
        return self.plain is not self.adapted


def load_entrant(label: str, folder: Path, base: Path | None = None) -> Entrant:
    """`base`: path of a gated adapter's base, if it is not where the adapter says."""
    adapted = Model.load(folder, base=base)
    if adapted.mtp is None:
        raise UsageError(f"{label}={folder} has no mask token; expected a folder that `multitoken adapt` wrote")
    if not is_adapter(folder):
        return Entrant(label, adapted, adapted)
    settings, _ = read_adapter_config(folder)
    return Entrant(label, adapted, Model.load(base or find_base(folder, settings)))


def entrants_in(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[Entrant]:
    """The models of `--model` and `--base`. If one cannot be loaded, the program ends with the reason."""
    try:
        return [load_entrant(label, folder, arguments.base) for label, folder in arguments.model]
    except MultitokenError as error:
        parser.error(str(error))


def labelled(text: str) -> tuple[str, Path]:
    """ "gated=runs/gated" -> ("gated", the folder)"""
    label, equals, folder = text.partition("=")
    if not (label and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r}: expected LABEL=DIR, such as held-out=runs/held-out-gated")
    if not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: {folder} is not a folder; expected LABEL=DIR")
    return label, Path(folder)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, help="sample at this temperature; greedy if not given or 0")
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--seed", type=int)


def sampling_in(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Sampling | None:
    """The values of the options that `add_sampling` added. Invalid values end the program with the reason."""
    try:
        return sampling_of(arguments.temperature, arguments.top_p, seed=arguments.seed)
    except (UsageError, ValueError) as error:  # DecodingError is a ValueError
        parser.error(str(error))
