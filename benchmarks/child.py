"""A process that answers questions over pipes, one line of JSON each, and uses no processor time while it waits."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Child:
    """source: the folder from which it imports multitoken, if not the installed one."""

    def __init__(self, command: Sequence[str], source: Path | None = None) -> None:
        environment = os.environ | ({"PYTHONPATH": str(source)} if source else {})
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def say(self, what: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def read(self) -> Any:
        """The next line of its output. Raises `SystemExit` if the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a measured process has ended; its output is above")
        return json.loads(line)

    def ask(self, what: Any) -> Any:
        self.say(what)
        return self.read()

    def stop(self) -> None:
        """Closes its input, which ends the process, and waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
