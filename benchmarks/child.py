"""A process that answers questions over pipes, a line of JSON each, and waits in between without using a processor."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Child:
    """source: the folder whose multitoken it imports, if not the one that is installed."""

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
        """Its next line. Ends the program where it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a process that was measured has ended; what it said stands above")
        return json.loads(line)

    def ask(self, what: Any) -> Any:
        self.say(what)
        return self.read()

    def stop(self) -> None:
        """It ends where its input does."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
