"""The weight files of a checkpoint: where they are, whether they are complete, how large they are, and which weights they hold.

The hash is computed from the files, not from a loaded model, so it does not depend on the type that a model is loaded in. Values
are hashed in bf16: a float32 checkpoint and its copy in bf16 have the same hash. Tensors are hashed in pieces, in parallel, and
the result is cached for as long as the files do not change.
"""

import hashlib
import json
import mmap
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from multitoken.errors import ModelError

_PIECE = 2**25  # numbers in a piece that is hashed at once
_KIND = "tensors:"  # prefix of this hash; the hashes of older checkpoints begin with "sha256:"
_SETTLED = 2.0  # seconds: a younger file could change again without a change of its time stamp
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: bytes `start` to `end`. `dtype` is its name in safetensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The torch type; None if the tensor does not hold floating-point numbers of a known type."""
        return _FLOATS.get(self.dtype)


def weight_files(source: str) -> list[Path]:
    """The safetensors files of a folder or a hub name, fetched if necessary. Raises `ModelError` for a file that does not
    exist."""
    folder = Path(source)
    if folder.is_dir():
        if not (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
            return [folder / SAFE_WEIGHTS_NAME] if (folder / SAFE_WEIGHTS_NAME).is_file() else _none(source)
        try:
            index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
            names = sorted(set(index["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{source}: cannot read {SAFE_WEIGHTS_INDEX_NAME}: {error}") from error
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ModelError(
                f"{source} lacks {', '.join(missing[:3])} ({len(missing)} of {len(names)} weight files); copy the folder again"
            )
        return [folder / name for name in names]
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    if (index := cached_file(source, SAFE_WEIGHTS_INDEX_NAME, **quiet)) is not None:
        return [Path(file) for file in get_checkpoint_shard_files(source, index)[0]]
    if (file := cached_file(source, SAFE_WEIGHTS_NAME, **quiet)) is not None:
        return [Path(file)]
    return _none(source)


def _none(source: str) -> list[Path]:
    raise ModelError(
        f"{source} has neither {SAFE_WEIGHTS_NAME} nor its index; save the model with save_pretrained of transformers 5"
    )


def stored_tensors(files: Sequence[Path]) -> list[Stored]:
    """The tensors listed in the files' headers, by name. Raises `ModelError` for a file that is broken or truncated."""
    return sorted((tensor for file in files for tensor in _header(file)), key=lambda tensor: tensor.name)


def _header(file: Path) -> Iterator[Stored]:
    """Read a file's header. The format is eight bytes of length, JSON, and then the numbers."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length)) if 0 < length <= size - 8 else None
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot read the weights: {error}; copy the file again") from error
    if not isinstance(header, dict):
        raise ModelError(f"{file}: cannot read the weights: it is not a safetensors file; copy the file again")
    header.pop("__metadata__", None)
    begin = 8 + length
    whole = begin + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size < whole:
        raise ModelError(
            f"{file}: cannot read the weights: it is cut short, {size:,} of {whole:,} bytes are there; copy the file again"
        )
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        yield Stored(name, entry["dtype"], tuple(entry["shape"]), file, begin + start, begin + end)


def weight_hash(files: Sequence[Path]) -> str:
    """`tensors:` and the hex digest of every tensor's name, shape and values in bf16, by name."""
    remembered = _place_of(files)
    try:
        return remembered.read_text()
    except OSError:
        pass
    pieces = [(tensor, first) for tensor in stored_tensors(files) for first in range(0, _numbers(tensor), _PIECE)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lines = list(pool.map(_line, pieces))
    found = _KIND + hashlib.sha256("".join(lines).encode()).hexdigest()
    if all(time.time() - file.stat().st_mtime > _SETTLED for file in files):
        _remember(remembered, found)
    return found


def _numbers(tensor: Stored) -> int:
    return max(1, prod(tensor.shape))


def _line(piece: tuple[Stored, int]) -> str:
    """One line of text that describes a piece of a tensor and holds its digest."""
    tensor, first = piece
    width = (tensor.end - tensor.start) // _numbers(tensor)
    start, end = tensor.start + first * width, min(tensor.end, tensor.start + (first + _PIECE) * width)
    digest = hashlib.sha256()
    if end > start:
        with tensor.file.open("rb") as opened:
            page = start - start % mmap.ALLOCATIONGRANULARITY
            with mmap.mmap(opened.fileno(), end - page, access=mmap.ACCESS_COPY, offset=page) as mapped:
                view = memoryview(mapped)[start - page :]
                _update(digest, view, tensor.torch_dtype)
                view.release()
    kind = "bfloat16" if tensor.torch_dtype is not None else tensor.dtype
    return f"{tensor.name} {list(tensor.shape)} {kind} {first} {digest.hexdigest()}\n"


def _update(digest: "hashlib._Hash", view: memoryview, dtype: torch.dtype | None) -> None:
    if dtype is None or dtype == torch.bfloat16:
        digest.update(view)
        return
    step = 2**22 * dtype.itemsize  # in small steps, so that no second copy of the whole piece is in memory
    for start in range(0, len(view), step):
        values = torch.frombuffer(bytearray(view[start : start + step]), dtype=dtype).bfloat16()
        digest.update(values.view(torch.uint8).numpy().data)


def _place_of(files: Sequence[Path]) -> Path:
    """The cache file for the hash of these files in their present state."""
    stats = [(str(file.resolve()), file.stat()) for file in files]
    known = [(path, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for path, s in stats]
    key = hashlib.sha256(repr((_KIND, known)).encode()).hexdigest()
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return home / "multitoken" / "weight-hashes" / key


def _remember(place: Path, found: str) -> None:
    """Cache the hash if the cache can be written; otherwise it is computed again next time."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False) as file:
            file.write(found)
        Path(file.name).replace(place)
    except OSError:
        return


def is_of_files(known: str) -> bool:
    """Whether a hash is a `weight_hash`. Checkpoints of format 1 and 2 have the hash of a loaded model's parameters."""
    return known.startswith(_KIND)


def parameter_hash(model: PreTrainedModel) -> str:
    """`sha256:` and the hex digest of every parameter's name, shape and values in bf16, by name. Tied ones count once."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().cpu()
        values = values.bfloat16() if values.is_floating_point() else values
        digest.update(f"{name} {list(values.shape)} {values.dtype}\n".encode())
        digest.update(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"
