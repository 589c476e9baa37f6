"""The flags that `vllm serve` is given."""

from pathlib import Path

import pytest

from multitoken.decoding import ConfAdapt
from multitoken.errors import UsageError
from multitoken.serving.handover import serve_with_vllm, vllm_arguments
from multitoken.serving.options import ServeOptions


def test_flags_are_vllms_own() -> None:
    options = ServeOptions(
        "m", port=9, policy=ConfAdapt(0.8), max_rows=4, api_key="secret", origins=("https://a.example",)
    )
    assert vllm_arguments("folder", options, trust_remote_code=True) == [
        *("serve", "folder", "--host", "127.0.0.1", "--port", "9", "--served-model-name", "m", "--max-num-seqs", "4"),
        *("--additional-config", '{"mtp": {"policy": "confadapt", "threshold": 0.8}}'),
        *("--allowed-origins", '["https://a.example"]', "--trust-remote-code"),
    ]


def test_without_vllm_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"multitoken\[vllm\]"):
        serve_with_vllm("folder", ServeOptions("m"))
