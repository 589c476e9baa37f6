"""What the `mtp` block of config.json means, and the errors for a broken one."""

import json

import pytest
from transformers import AutoConfig, LlamaConfig

from multitoken.errors import ModelError
from multitoken.models.mtp_config import MtpConfig

BLOCK = {
    "k": 4,
    "mask_token_id": 7,
    "mask_token": "<MTP>",
    "method": "full",
    "base_name": "base",
    "base_hash": "sha256:0",
    "format_version": 1,
}


def config_with(block: object) -> LlamaConfig:
    config = LlamaConfig(vocab_size=8)
    config.mtp = block
    return config


def test_an_ordinary_model_has_no_block():
    """Guards against an ordinary model taken for an adapted one."""
    assert MtpConfig.from_hf(LlamaConfig()) is None


def test_round_trip_through_config_json(tmp_path):
    """Guards against keys lost or renamed between to_dict, config.json and from_hf."""
    mtp = MtpConfig(k=4, mask_token_id=7, mask_token="<MTP>", method="full", base_name="base", base_hash="sha256:0")
    config_with(mtp.to_dict()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mtp"] == BLOCK | {"draft_head": 0, "format_version": 2}
    assert MtpConfig.from_hf(AutoConfig.from_pretrained(tmp_path)) == mtp


def test_a_block_of_the_first_format_has_no_head():
    """Checkpoints from before the draft head must decode as they did."""
    assert "draft_head" not in BLOCK
    mtp = MtpConfig.from_hf(config_with(BLOCK))
    assert mtp is not None and mtp.draft_head == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": 1}, "mtp.k is 1"),
        ({"k": True}, "mtp.k is True; expected int"),
        ({"k": "4"}, "mtp.k is '4'; expected int"),
        ({"mask_token_id": 8}, "mtp.mask_token_id is 8; expected an id below vocab_size = 8"),
        ({"mask_token_id": -1}, "mtp.mask_token_id is -1"),
        ({"mask_token": ""}, "mtp.mask_token is ''"),
        ({"mask_token": None}, "mtp.mask_token is None; expected str"),
        ({"method": "magic"}, "mtp.method is 'magic'; expected one of full"),
        ({"base_hash": 3}, "mtp.base_hash is 3"),
        ({"format_version": 0}, "mtp.format_version is 0"),
        ({"format_version": 3, "new_key": 1}, "mtp.format_version is 3; .* upgrade"),
        ({"mask_tokn": "x"}, "unknown key 'mask_tokn'; did you mean 'mask_token'"),
    ],
)
def test_a_broken_block_names_its_field(change, says):
    """Guards against a TypeError from a dataclass, or a wrong mask id, in place of the field's name."""
    with pytest.raises(ModelError, match=says):
        MtpConfig.from_hf(config_with(BLOCK | change))


@pytest.mark.parametrize("key", sorted(BLOCK))
def test_a_missing_key_is_named(key):
    """Guards against defaults that hide a block cut short (k = None would decode with no masks)."""
    with pytest.raises(ModelError, match=f"lacks {key}"):
        MtpConfig.from_hf(config_with({name: value for name, value in BLOCK.items() if name != key}))


def test_a_foreign_mtp_entry_is_refused():
    """Guards against another project's `mtp` (a number of layers) being read as ours."""
    with pytest.raises(ModelError, match="mtp is 1; expected an object"):
        MtpConfig.from_hf(config_with(1))
