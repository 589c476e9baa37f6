"""The command line, called as a shell calls it."""

import pytest

from multitoken.cli import main


def run(*argv) -> int:
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in argv])
    return int(ended.value.code or 0)
