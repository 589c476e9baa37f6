"""The GPU benchmark runs here without a GPU, so that it works where there is one."""

import torch

from benchmarks.gpu import TINY, WIDTHS, decoding_table, draw, exactness, page
from multitoken.checkpoints.provenance import provenance


def test_it_measures_and_writes_its_page(tmp_path) -> None:
    """Guards against a benchmark that nobody has run since the code around it changed."""
    cpu = torch.device("cpu")
    rows = decoding_table(dict(list(TINY.items())[:1]), cpu, (32,), 6)
    assert rows[0]["generate_ms"] > 0 and sorted(rows[0]["ms"]) == sorted(WIDTHS) and min(rows[0]["ms"].values()) > 0
    exact = exactness(cpu, 2)
    assert exact["identical"] + exact["ties"] <= exact["prompts"] == 2
    draw(rows, tmp_path / "gpu.png")
    training = [{"method": "gated", "seconds": 1.0, "memory_mb": {"weights": 20.0}}]
    text = page(rows, training, exact, provenance(), "gpu.png")
    assert "| tiny | 32 |" in text and "gated" in text and (tmp_path / "gpu.png").stat().st_size > 5000
