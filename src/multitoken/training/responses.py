"""Missing responses, written by the teacher once and kept on disk.

The cache is a JSONL file, a response a line: `{"name": fingerprint of teacher and prompt, "ids": [...], "ended": ...}`. Of several
processes each writes its share, all but the first to files of their own beside it. What is finished is on disk before the next is
waited for, so Ctrl-C loses what is being written at most; a line that was torn is written again.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from multitoken.errors import DataError, OutputError
from multitoken.processes import Processes

from .encoding import fingerprint

Written = tuple[list[int], bool]
"""A response's ids and whether it ended. If so its last id is the EOS that the teacher chose, else none is there."""

Write = Callable[[list[list[int]], list[int]], Iterable[Mapping[int, Written]]]
"""(prompts, their numbers) -> their responses by place, a few at a time as they are finished. A prompt's number may key its noise."""


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
    progress: Callable[[int, int, int], None] | None = None,
    processes: Processes | None = None,
) -> list[Written]:
    """A response for each prompt, from the cache or from `write`; equal prompts are written once.

    Prompts go from long to short: batches need little padding, and one that does not fit in memory fails first. They are numbered in
    that order, so that noise keyed by the number is the same in a resumed call and among several processes. `progress(done, total, tokens)`
    counts different prompts, and the tokens of this call; those of other processes by what this one has done.
    Raises `DataError` for a damaged cache and `OutputError` when it cannot be read or written.
    """
    names = [fingerprint(ids, salt=key) for ids in prompts]
    wanted = {name: list(ids) for name, ids in zip(names, prompts, strict=True)}
    order = sorted(wanted, key=lambda name: (-len(wanted[name]), wanted[name]))
    processes = processes or Processes.here()
    own = cache_file if processes.first else cache_file.with_name(f"{cache_file.name}.{processes.index}")
    written, whole_bytes = _read_all(cache_file, own, wanted.keys())
    known = len(written)
    if progress:
        progress(known, len(wanted), 0)
    if known < len(wanted):
        processes.wait()  # none writes before all have read
        missing = processes.mine([(number, name) for number, name in enumerate(order) if name not in written])
        _open_cache(own, whole_bytes)
        mine: dict[str, Written] = {}
        tokens = 0
        for finished in write([wanted[name] for _, name in missing], [number for number, _ in missing]):
            fresh = {missing[place][1]: response for place, response in finished.items()}
            _append(own, fresh)
            mine |= fresh
            tokens += sum(len(ids) for ids, _ in fresh.values())
            if progress:
                done = min(known + len(mine) * processes.number, len(wanted))
                progress(done, len(wanted), tokens * processes.number)
        for theirs in processes.gather(mine):
            written |= theirs
        assert len(written) == len(wanted), "the writer left prompts without a response"
    return [written[name] for name in names]


def _read_all(cache_file: Path, own: Path, wanted: Collection[str]) -> tuple[dict[str, Written], int]:
    """The wanted responses of every process's cache, and the length in bytes of all whole lines of this process's `own`."""
    written, whole_bytes = _read_cache(own, wanted)
    for path in {cache_file, *cache_file.parent.glob(f"{cache_file.name}.*")} - {own}:
        written |= _read_cache(path, wanted)[0]
    return written, whole_bytes


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
