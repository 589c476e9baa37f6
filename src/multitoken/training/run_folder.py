"""The folder of a run, next to its output: the options it started with, written responses, checkpoints."""

import json
import shutil
from pathlib import Path

from multitoken.checkpoints.atomic import COMPLETE, disk_errors, write_json
from multitoken.config import AdaptConfig
from multitoken.errors import OutputError, UsageError
from multitoken.processes import Processes

__all__ = ["COMPLETE", "RESPONSES", "last_complete_checkpoint", "leave_nothing", "may_overwrite", "open_run_folder"]

RESPONSES = "responses.jsonl"
_SETTINGS = "config.json"
# Options that a resumed run may change. How many processes share the rows of a step makes no difference to what is learned.
_FREE = {"resume", "overwrite", "output", "checkpoint_every", "device", "report_to", "responses_from"}
_FREE |= {"batch_size", "gradient_accumulation", "shard"}


def open_run_folder(work: Path, config: AdaptConfig) -> Path | None:
    """Make the folder of the run, or find where an interrupted run can continue. -> its last complete checkpoint."""
    options = config.model_dump(mode="json", exclude=_FREE)
    options["rows_per_step"] = config.batch_size * config.gradient_accumulation * Processes.here().number
    settings = work / _SETTINGS
    if settings.exists() and config.resume:
        before = json.loads(settings.read_text())
        changed = sorted(key for key in options if options[key] != before.get(key))
        if changed:
            told = ", ".join(f"{key} was {before.get(key)!r}, now {options[key]!r}" for key in changed)
            rows = (
                "; rows_per_step is batch_size x gradient_accumulation x processes"
                if "rows_per_step" in changed
                else ""
            )
            raise UsageError(f"cannot resume {work} with other options: {told}{rows}; use the old ones or --overwrite")
        return last_complete_checkpoint(work)
    if config.resume:
        raise OutputError(f"there is no unfinished run in {work} to resume; leave --resume out")
    if work.exists():
        # A run that failed before it wrote or trained anything has left nothing to lose.
        worth = any(work.glob("checkpoint-*")) or any(work.glob(f"{RESPONSES}*"))
        if worth and not config.overwrite:
            raise OutputError(
                f"{work} holds an unfinished run; continue it with --resume or discard it with --overwrite"
            )
        _clear(work)
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    write_json(settings, options | {"overwrite": config.overwrite})
    return None


def may_overwrite(work: Path) -> bool:
    """Whether the run of this folder was started with overwrite, so that it may replace its output when it is resumed."""
    settings = work / _SETTINGS
    return settings.exists() and bool(json.loads(settings.read_text()).get("overwrite"))


def leave_nothing(work: Path) -> None:
    """Remove the folder of a run that was refused before it wrote a response or trained a step."""
    if {path.name for path in work.iterdir()} <= {_SETTINGS}:
        shutil.rmtree(work)


def _clear(work: Path) -> None:
    """Remove a run except for its responses: the name of each one identifies the teacher and options that wrote it."""
    for path in work.iterdir():
        if not path.name.startswith(RESPONSES):  # with several processes, each has its own file
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint. Incomplete ones are removed."""
    complete: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).exists():
            complete.append((int(path.name.rsplit("-", 1)[1]), path))
        else:
            shutil.rmtree(path)
    return max(complete)[1] if complete else None
