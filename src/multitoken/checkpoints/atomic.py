"""Files and folders that are written completely or not at all, and clear messages for disk errors.

A folder is filled under another name next to its target, flushed to disk, marked complete and renamed. A folder that holds
`.complete` is therefore complete, even after a crash or a power cut.
"""

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multitoken.errors import OutputError

COMPLETE = ".complete"

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another folder",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EPERM: "operation not permitted; choose a folder you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
}


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn a full disk, an exceeded quota, a missing permission or a read-only disk into an OutputError about `path`."""
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number not in _REASONS:
            raise
        raise OutputError(f"cannot write {path}: {_REASONS[number]}") from error


def _errno(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # safetensors wraps the system error in an error of its own: "I/O error: No space left ... (os error 28)".
    found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else None


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8. Readers see the old file or the new one, never a part of one, even after a crash."""
    target = Path(os.path.realpath(path))
    temporary = _beside(target)
    with disk_errors(path):
        try:
            with temporary.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            _flush(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, as `write_text` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `path`, with the marker `.complete`, when the block ends without an error.

    On any exception, KeyboardInterrupt included, the temporary folder is removed and `path` stays as it was. With
    `overwrite` the old folder is moved aside, the new one takes its name, and only then is the old one removed.
    Raises OutputError as `check_output` and `disk_errors` do.
    """
    check_output(path, overwrite=overwrite)
    target = Path(os.path.realpath(path))
    temporary = _beside(target)
    with disk_errors(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for file in sorted(temporary.rglob("*")):
                _flush(file)
            write_text(temporary / COMPLETE, "")
            _swap(temporary, target, path, overwrite)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_output(path: str | Path, *, overwrite: bool) -> None:
    """Raise OutputError if `atomic_folder(path)` could not create the folder. This is cheap: call it before the work.

    A new or empty folder is fine. A file, a folder that is not empty (without `overwrite`), a folder that holds the current or
    the home folder, a mount point, and a path that cannot be written are not.
    """
    target = Path(os.path.realpath(path))
    if any(place.is_relative_to(target) for place in (Path.cwd(), Path.home().resolve())):
        raise OutputError(f"{path} holds the current or the home folder and is never replaced; choose another folder")
    if os.path.ismount(target):
        raise OutputError(f"{path} is a mount point, which cannot be replaced; choose a folder in it")
    with disk_errors(path):
        if target.exists() and not target.is_dir():
            raise OutputError(f"{path} is a file; expected a new or empty folder: choose another output")
        if not overwrite and target.is_dir() and any(target.iterdir()):
            raise OutputError(f"{path} exists and is not empty; choose another output, or replace it with --overwrite")
        parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir():
        raise OutputError(f"{path} cannot be made: {parent} is a file; choose another output")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be made: {parent} is not writable; choose a folder you may write to")


def is_complete(path: str | Path) -> bool:
    """Whether `path` is a folder that `atomic_folder` finished."""
    return (Path(path) / COMPLETE).is_file()


def _swap(new: Path, target: Path, path: str | Path, overwrite: bool) -> None:
    """Rename `new` to `target`. The old folder is removed only after the new one has taken its name."""
    if not target.exists():
        new.rename(target)
    else:
        check_output(path, overwrite=overwrite)  # checked again: another run may have filled it since
        old = _beside(target)
        target.rename(old)
        try:
            new.rename(target)
        except BaseException:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _flush(target.parent)


def _beside(target: Path) -> Path:
    # Not tempfile: other users cannot read its files and folders (0600, 0700), and a rename keeps these modes.
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")


def _flush(path: Path) -> None:
    """fsync a file, or a folder where the system can open one (Windows cannot)."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
