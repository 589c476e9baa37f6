"""Find the draft head of a checkpoint (a folder or a hub name)."""

from transformers.utils.hub import cached_file

from multitoken.decoding.failures import DecodingError
from multitoken.decoding.head_file import HEAD_WEIGHTS, check_version
from multitoken.errors import ModelError


def find_head(source: str, version: int, revision: str | None = None, token: str | bool | None = None) -> str:
    """The file of the draft head that the `mtp` block names, fetched if necessary. token: of the Hub, for a private repository.
    Raises `ModelError` if there is none, and for a version that this multitoken cannot read."""
    try:
        check_version(version)
        file = cached_file(source, HEAD_WEIGHTS, revision=revision, token=token)
    except DecodingError as error:
        raise ModelError(f"{source}: {error}") from error
    except OSError as error:
        raise ModelError(
            f"{source}: the mtp block names a draft head, but {HEAD_WEIGHTS} is not there; copy the folder again"
        ) from error
    assert file is not None, "cached_file raises where there is none"
    return file
