"""The `mtp` block of a checkpoint's `config.json`: the id of the mask token, and how the checkpoint was trained."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from multitoken.errors import ModelError, nearest

FORMAT_VERSION = 2  # 2: draft_head
METHODS = ("full", "lora", "gated")


@dataclass(frozen=True, kw_only=True)
class MtpConfig:
    """The `mtp` block. An invalid one raises a ModelError that names the field.

    >>> MtpConfig(k=4, mask_token_id=2040, mask_token="<MTP>", method="full", base_name="b", base_hash="sha256:0").k
    4
    """

    k: int
    """Length of the blocks it was trained on: one prediction at the anchor and k - 1 at mask tokens. At least 2."""
    mask_token_id: int
    """The id that is fed k - 1 times after a prefix."""
    mask_token: str
    """The text of that id in the tokenizer."""
    method: str
    """How the weights were adapted: one of METHODS."""
    base_name: str
    """The model it was made from: a hub name or the name of a folder, never a path."""
    base_hash: str
    """`weight_hash` of that model's files (see `weights`)."""
    draft_head: int = 0
    """Version of the draft head that the checkpoint holds; 0: it has none."""
    format_version: int = FORMAT_VERSION
    """Version of this block. Older versions stay readable, newer ones are refused."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            # In Python a bool is an int, but `"k": true` is a mistake.
            if type(value) is not field.type:
                raise _broken(field.name, value, f"{getattr(field.type, '__name__', field.type)}")
        if not 1 <= self.format_version <= FORMAT_VERSION:
            raise _newer(self.format_version)
        if self.k < 2:
            raise _broken("k", self.k, "an int of at least 2")
        if self.mask_token_id < 0:
            raise _broken("mask_token_id", self.mask_token_id, "an id of the vocabulary")
        if not self.mask_token:
            raise _broken("mask_token", self.mask_token, "the text of the mask token")
        if self.method not in METHODS:
            raise _broken("method", self.method, f"one of {', '.join(METHODS)}")

    @classmethod
    def from_hf(cls, config: PreTrainedConfig) -> "MtpConfig | None":
        """The block of a loaded `config.json`; None for an ordinary model.

        Raises ModelError for a missing or unknown key, a wrong type, k below 2, a mask token id outside the vocabulary (allowed
        for method gated), and a format newer than this version of multitoken can read.
        """
        block: Any = getattr(config, "mtp", None)
        if block is None:
            return None
        mtp = cls.from_block(block, "config.json")
        if mtp.method != "gated":
            mtp.check_vocabulary(config.get_text_config().vocab_size)
        return mtp

    @classmethod
    def from_block(cls, block: Any, where: str) -> "MtpConfig":
        """The block as read from the file `where`, which error messages name."""
        if not isinstance(block, dict):
            raise ModelError(f"{where}: mtp is {block!r}; expected an object with the keys {', '.join(_KEYS)}")
        # Checked before the keys: a newer format may have other keys, and "upgrade" is then the better advice.
        version = block.get("format_version", FORMAT_VERSION)
        if type(version) is int and version > FORMAT_VERSION:
            raise _newer(version)
        for key in block:
            if key not in _KEYS:
                raise ModelError(f"{where}: mtp has the unknown key {key!r}{nearest(str(key), _KEYS)}")
        missing = [key for key in _KEYS if key not in block and key not in _OPTIONAL]
        if missing:
            raise ModelError(f"{where}: mtp lacks {', '.join(missing)}; save the checkpoint again")
        return cls(**block)

    def check_vocabulary(self, size: int) -> None:
        """Raises ModelError for a mask token id for which the model's own embedding has no row."""
        if self.mask_token_id >= size:
            raise _broken("mask_token_id", self.mask_token_id, f"an id below vocab_size = {size}")

    def to_dict(self) -> dict[str, int | str]:
        """The block as `config.json` holds it."""
        return dataclasses.asdict(self)


_OPTIONAL = ("draft_head",)
_KEYS = tuple(field.name for field in dataclasses.fields(MtpConfig))


def _broken(field: str, value: object, expected: str) -> ModelError:
    return ModelError(f"config.json: mtp.{field} is {value!r}; expected {expected}")


def _newer(version: int) -> ModelError:
    return ModelError(
        f"config.json: mtp.format_version is {version}; this multitoken reads 1 to {FORMAT_VERSION}: "
        "upgrade it (pip install -U multitoken)"
    )
