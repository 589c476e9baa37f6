"""Missing responses, written by the teacher once and kept on disk.

The cache is a JSONL file with one response per line:
`{"name": fingerprint of teacher and prompt, "ids": [...], "ended": ...}`. With several processes, each writes its share,
and all but the first write to files of their own next to the cache. A finished response is on disk before the next one is
waited for, so Ctrl-C loses at most the responses in progress. A line that was only partly written is written again.
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
"""A response's ids and whether it ended. If so, its last id is the EOS that the teacher chose; otherwise it has none."""

Write = Callable[[list[list[int]], list[int]], Iterable[Mapping[int, Written]]]
"""(prompts, their numbers) -> their responses by index in the list, a few at a time as they are finished. A prompt's number
may key its noise."""


def teacher_key(
    model_hash: str, *, mode: Literal["greedy", "sampled", "mixed"], max_new_tokens: int, temperature: float, seed: int
) -> str:
    """Everything but the prompt that determines a response. A greedy response does not depend on temperature and seed."""
    noise = "" if mode == "greedy" else f"temperature={temperature!r} seed={seed}"
    return f"model={model_hash} {mode} max_new_tokens={max_new_tokens} {noise}".rstrip()


def longest_response(prompt: int, max_new_tokens: int, positions: int | None) -> int:
    """The most tokens of a response to a prompt of that many tokens. positions: the model's limit, if it has one. It depends on
    nothing that the name of a response leaves out, such as max_length."""
    return max_new_tokens if positions is None else min(max_new_tokens, positions - prompt)


def is_sampled(prompt_ids: Sequence[int], mode: str) -> bool:
    """Whether the response to this prompt is sampled. With "mixed", every second one is, by the prompt's hash, so that the
    order of the data does not matter."""
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
    """A response for each prompt, from the cache or from `write`. Equal prompts are written once.

    Prompts go from long to short: batches need little padding, and a prompt that does not fit in memory fails first. They
    are numbered in that order, so noise keyed by the number is the same in a resumed call and with several processes.
    `progress(done, total, tokens)` counts distinct prompts, and the tokens of this call. What other processes have done is
    estimated from this one. Raises `DataError` for a damaged cache and `OutputError` when it cannot be read or written.
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
        processes.wait()  # no process writes before all have read
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
    """The wanted responses from the caches of all processes, and the length in bytes of the complete lines of this
    process's `own` cache."""
    written, whole_bytes = _read_cache(own, wanted)
    for path in {cache_file, *cache_file.parent.glob(f"{cache_file.name}.*")} - {own}:
        written |= _read_cache(path, wanted)[0]
    return written, whole_bytes


def _read_cache(path: Path, wanted: Collection[str]) -> tuple[dict[str, Written], int]:
    """The wanted responses, and the length in bytes of all complete lines."""
    found: dict[str, Written] = {}
    whole_bytes = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):  # cut off by an interruption
                    break
                try:
                    entry = json.loads(line)
                    name, response = entry["name"], ([int(i) for i in entry["ids"]], bool(entry["ended"]))
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(
                        f"{path}, line {number}: not a cached response ({error}): delete the file to start over"
                    ) from error
                whole_bytes += len(line)
                if name in wanted:
                    found[name] = response
    except FileNotFoundError:
        return {}, 0
    except OSError as error:
        raise OutputError(f"cannot read the responses in {path}: {error.strerror}") from error
    return found, whole_bytes


def _open_cache(path: Path, whole_bytes: int) -> None:
    """Check, before the expensive work, that the file can be appended to, and cut off an incomplete last line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(whole_bytes)
    except OSError as error:
        raise OutputError(f"cannot write responses to {path}: {error.strerror}") from error


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
        raise OutputError(f"cannot write responses to {path}: {error.strerror}; free space and run again") from error
