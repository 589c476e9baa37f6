"""Which package may import which, checked against the source. The packages are called rooms here."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "multitoken"
OPEN = {"adapt_options", "config", "errors", "processes", "progress"}
MAY_IMPORT = {
    "decoding": set(),
    "models": {"decoding"},
    "checkpoints": {"decoding", "models"},
    "training": {"decoding", "models", "checkpoints"},
    "evaluation": {"decoding", "models", "checkpoints"},
    "serving": {"decoding", "models", "checkpoints"},
    "vllm": {"decoding", "models"},
    "quickstart": {"decoding", "models", "checkpoints", "training", "evaluation", "serving"},
}
FILES = [
    pytest.param(path, id=str(path.relative_to(SOURCE))) for room in MAY_IMPORT for path in (SOURCE / room).glob("*.py")
]


def imported(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("path", FILES)
def test_a_room_imports_only_what_its_row_allows(path: Path) -> None:
    """Guards the directions of dependencies: two rooms in an import cycle would really be one room."""
    room = path.parent.name
    for node in imported(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            continue
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):  # `from multitoken import training` names a room too
            names = [f"{node.module}.{name}" for name in names]
        for name in names:
            parts = name.split(".")
            if parts[0] != "multitoken" or len(parts) == 1:
                continue
            allowed = MAY_IMPORT[room] | {room} | (OPEN if room != "decoding" else set())
            assert parts[1] in allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", [p for p in FILES if p.values[0].parent.name == "decoding"])
def test_decoding_is_an_island_that_the_hub_loader_can_copy(path: Path) -> None:
    """The Hub's scanner of custom code misses `from . import x`. Packages other than torch, transformers and numpy,
    which both bring along, are not installed where the code is loaded."""
    import sys

    for node in imported(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for name in names:
            assert name.split(".")[0] in {"torch", "transformers", "numpy", *sys.stdlib_module_names}


def test_there_is_one_muon() -> None:
    """torch's own Muon computes in bfloat16. On a CPU without instructions for it, a training step takes ten times as
    long."""
    named = [path.name for path in SOURCE.rglob("*.py") if "optim.Muon" in path.read_text()]
    assert named == ["muon.py"]
