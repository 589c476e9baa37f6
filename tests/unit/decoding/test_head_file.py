"""A draft head's file: one that does not fit is refused with a clear error, and one that fits loads as it was saved."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from multitoken.decoding.draft_head import DraftHead
from multitoken.decoding.failures import DecodingError
from multitoken.decoding.head_file import HEAD_WEIGHTS, head_of, head_state
from multitoken.errors import ModelError
from multitoken.models.loading import load_causal_lm
from multitoken.quickstart.embedded import checkpoint


def test_round_trip(tmp_path: Path) -> None:
    head = DraftHead(12, 4)
    torch.nn.init.normal_(head.up)
    save_file(head_state(head), tmp_path / "head")
    again = head_of(load_file(tmp_path / "head"), 12, "head")
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True))


def test_a_head_of_another_hidden_size_is_refused() -> None:
    with pytest.raises(DecodingError, match="hidden size of 12, but the model's is 16"):
        head_of(head_state(DraftHead(12, 4)), 16, "head")


def test_what_is_no_head_is_refused() -> None:
    state = head_state(DraftHead(12, 4))
    with pytest.raises(DecodingError, match="is not a draft head: it has no matrix 'up'"):
        head_of({"weight": torch.zeros(2, 2)}, 12, "head")
    with pytest.raises(DecodingError, match=r"(?s)is not a draft head: .*extra"):
        head_of(state | {"extra": torch.zeros(1)}, 12, "head")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A copy of the embedded adapter, with its base next to it."""
    shutil.copytree(checkpoint("gated"), tmp_path / "gated")
    (tmp_path / "base").symlink_to(checkpoint("base"))
    return tmp_path / "gated"


def test_a_folder_without_its_head_is_refused(adapter: Path) -> None:
    (adapter / HEAD_WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"names a draft head, but mtp_head/draft_head.safetensors is not there"):
        load_causal_lm(adapter)


def test_a_head_of_another_version_is_refused(adapter: Path) -> None:
    """A head of another version has another formula: without the error, drafts would silently be nonsense."""
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"draft_head": 1', '"draft_head": 7'))
    with pytest.raises(ModelError, match=r"draft head has version 7; this multitoken reads version 1.*adapt the model"):
        load_causal_lm(adapter)


def test_an_adapter_from_before_the_head_has_none(adapter: Path) -> None:
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"draft_head": 1', '"draft_head": 0'))
    assert load_causal_lm(adapter).head is None
