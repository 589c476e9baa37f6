"""Checkpoints that only comparisons need and that are therefore not in the package: the embedded base with every weight trained, as in the
paper ("full"), and the small model that drafts for it in transformers' assisted generation ("draft")."""

from pathlib import Path


def rival(name: str) -> Path:
    """The folder of "full" or "draft"."""
    return Path(__file__).parent / "checkpoints" / name
