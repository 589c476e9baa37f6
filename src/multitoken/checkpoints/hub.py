"""Put a finished folder on the Hugging Face Hub."""

import re
from pathlib import Path

from huggingface_hub import HfApi, get_token

from multitoken.errors import OutputError, UsageError

from .atomic import COMPLETE

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]{0,95}")


def check_push(name: str) -> None:
    """Raise `UsageError` if `push` could not start. Uses no network: call it before the work."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"push_to_hub is {name!r}; expected a name on the Hub, such as 'me/my-model'")
    if not get_token():
        raise UsageError(
            f"cannot push to {name}: there is no Hugging Face token here; log in with `hf auth login` or set HF_TOKEN to "
            "a token with write access"
        )


def push(folder: str | Path, name: str) -> str:
    """Upload the folder as one commit to the model repository `name`, which is created if it does not exist; a private one
    stays private. Returns its address. Raises `OutputError` if the Hub refuses or cannot be reached."""
    api = HfApi()
    try:
        place = api.create_repo(name, exist_ok=True)
        api.upload_folder(
            repo_id=place.repo_id,
            folder_path=folder,
            commit_message="Export of multitoken",
            ignore_patterns=[COMPLETE],
        )
    except Exception as error:  # the client and its transport, which differs by version, raise many kinds of errors
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise OutputError(
            f"cannot push to {name}: {reason}. {folder} is complete: push it again with `hf upload {name} {folder}`"
        ) from error
    return str(place)
