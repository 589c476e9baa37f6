"""Missing responses, written by the teacher once and kept on disk.

The cache is a JSONL file, a response a line: `{"name": fingerprint of teacher and prompt, "ids": [...], "ended": ...}`.
What is finished is on disk before the next is waited for, so Ctrl-C loses what is being written at most; a line that was torn is
written again.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from multitoken.errors import DataError, OutputError

from .encoding import fingerprint

Written = tuple[list[int], bool]
"""A response's ids and whether it ended. If so its last id is the EOS that the teacher chose, else none is there."""

Write = Callable[[list[list[int]], int], Iterable[Mapping[int, Written]]]
"""(prompts, number of the first one) -> their responses by place, a few at a time as they are finished. Prompt `number + i` may key the
noise of the one at place i."""


def teacher_key(
    model_hash: str, *, mode: Literal["greedy", "sampled", "mixed"], max_new_tokens: int, temperature: float, seed: int
) -> str:
    """What decides a response besides its prompt. A greedy response does not depend on temperature and seed."""
    noise = "" if mode == "greedy" else f"temperature={temperature!r} seed={seed}"
    return f"model={model_hash} {mode} max_new_tokens={max_new_tokens} {noise}".rstrip()


def is_sampled(prompt_ids: Sequence[int], mode: str) -> bool:
    """Whether the response to this prompt is drawn at random: under "mixed" every second one is, whatever the order."""
    return mode == "sampled" or (mode == "mixed" and int(fingerprint(prompt_ids)[-1], 16) % 2 == 1)


def write_missing(
    prompts: Sequence[Sequence[int]],
    write: Write,
    cache_file: Path,
    *,
    key: str,
    progress: Callable[[int, int], None] | None = None,
) -> list[Written]:
    """A response for each prompt, from the cache or from `write`; equal prompts are written once.

    Prompts go from long to short: batches need little padding, and one that does not fit in memory fails first.
    A resumed call numbers the prompts as an undisturbed one does, so that noise keyed by the number is the same.
    `progress(done, total)` counts different prompts.
    Raises `DataError` for a damaged cache and `OutputError` when it cannot be read or written.
    """
    names = [fingerprint(ids, salt=key) for ids in prompts]
    wanted = {name: list(ids) for name, ids in zip(names, prompts, strict=True)}
    written, whole_bytes = _read_cache(cache_file, wanted.keys())
    missing = sorted(wanted.keys() - written.keys(), key=lambda name: (-len(wanted[name]), wanted[name]))
    if progress:
        progress(len(written), len(wanted))
    if missing:
        _open_cache(cache_file, whole_bytes)
        for finished in write([wanted[name] for name in missing], len(written)):
            fresh = {missing[place]: response for place, response in finished.items()}
            _append(cache_file, fresh)
            written |= fresh
            if progress:
                progress(len(written), len(wanted))
        assert len(written) == len(wanted), "the writer left prompts without a response"
    return [written[name] for name in names]


def _read_cache(path: Path, wanted: Collection[str]) -> tuple[dict[str, Written], int]:
    """The wanted responses, and the length in bytes of all lines that are whole."""
    found: dict[str, Written] = {}
    whole_bytes = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):  # torn by an interruption
                    break
                try:
                    entry = json.loads(line)
                    name, response = entry["name"], ([int(i) for i in entry["ids"]], bool(entry["ended"]))
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(
                        f"{path}, line {number}: not a cached response ({error}): delete the file to start anew"
                    ) from error
                whole_bytes += len(line)
                if name in wanted:
                    found[name] = response
    except FileNotFoundError:
        return {}, 0
    except OSError as error:
        raise OutputError(f"cannot read the responses kept in {path}: {error.strerror}") from error
    return found, whole_bytes


def _open_cache(path: Path, whole_bytes: int) -> None:
    """Makes sure, before the expensive work, that the file can be appended to, and cuts off a torn last line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(whole_bytes)
    except OSError as error:
        raise OutputError(f"cannot keep responses in {path}: {error.strerror}") from error


def _append(path: Path, responses: dict[str, Written]) -> None:
    lines = "".join(
        json.dumps({"name": name, "ids": ids, "ended": ended}, separators=(",", ":")) + "\n"
        for name, (ids, ended) in responses.items()
    )
    try:
        with path.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"cannot keep responses in {path}: {error.strerror}; free space and run again") from error
