"""How an artefact was made: the command, the versions, the git revision, the machine. It holds no absolute paths of the
machine."""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

import multitoken


def provenance(**extra: Any) -> dict[str, Any]:
    """A JSON object that says how an artefact was made. The keys of `extra` are added; they must not be keys of the record."""
    record = {
        "command": command_line(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "multitoken": multitoken.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "git_revision": git_revision(),
        "machine": machine(),
    }
    if clash := sorted(record.keys() & extra.keys()):
        raise ValueError(f"provenance({clash[0]}=...): that key is the record's own; choose another")
    return record | extra


def command_line(argv: Sequence[str]) -> str:
    """The command as one could type it again: the program's name, and paths relative to the current folder or to `~`."""
    return " ".join(_quote(word) for word in (Path(argv[0]).name, *(_shorten(argument) for argument in argv[1:])))


def _quote(word: str) -> str:
    # shlex would also quote "~/out", and a shell then does not expand the "~".
    return word if re.fullmatch(r"[\w@%+=:,./~-]+", word) else shlex.quote(word)


def _shorten(argument: str) -> str:
    flag, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    path = Path(value)
    # "/data/model" is a path where /data exists; "/help", in a prompt, is text.
    if not path.is_absolute() or not Path(*path.parts[:2]).exists():
        return argument
    here, home = Path.cwd(), Path.home()
    if path.is_relative_to(home) and not path.is_relative_to(here):
        short = (Path("~") / path.relative_to(home)).as_posix()
    else:
        short = Path(os.path.relpath(path, here)).as_posix()
    return f"{flag}{equals}{short}"


def git_revision() -> str | None:
    """The commit of the current folder's repository, `-dirty` if tracked files differ; None if there is no repository."""
    try:
        revision = _git("rev-parse", "HEAD")
        return f"{revision}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else revision
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def machine() -> dict[str, str | int | None]:
    """Processor, cores, platform, and the GPU if torch sees one."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()
