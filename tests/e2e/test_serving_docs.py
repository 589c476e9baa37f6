"""The examples of docs/serving.md, run as they are written there."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import multitoken as mt
from multitoken.quickstart.embedded import checkpoint
from tests.serving import Running, running

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCS.read_text(), re.DOTALL)
CURLS = [code for language, code in BLOCKS if language == "sh" and code.startswith("curl")]
PYTHON = [code for language, code in BLOCKS if language == "python"]


@pytest.fixture(scope="module")
def server():
    with running(mt.load(checkpoint("gated")), name="demo") as server:
        yield server


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl(server: Running) -> None:
    assert len(CURLS) == 2
    answers = [
        subprocess.run(["bash", "-c", at(server, code)], capture_output=True, text=True, check=True, timeout=120).stdout
        for code in CURLS
    ]
    assert "357, 358, 359" in answers[0] and '"tokens_per_step"' in answers[0]
    assert answers[1].endswith("data: [DONE]\n\n") and '"tokens_per_step":1.0' in answers[1]


def test_openai_client(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    for code in PYTHON:
        exec(at(server, code), {})
    said = capsys.readouterr().out
    assert "357, 358, 359" in said and "old stone wall" in said and said.count("|") > 2


def at(server: Running, code: str) -> str:
    return code.replace("http://127.0.0.1:8000", server.url)
