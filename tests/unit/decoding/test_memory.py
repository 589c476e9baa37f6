"""How much memory is free: on the machine, in the container, and on a GPU whose memory PyTorch keeps."""

from pathlib import Path

import pytest
import torch

from multitoken.decoding import memory
from multitoken.decoding.memory import available_memory

MB = 2**20


def group(folder: Path, limit: str, usage: int, files: int, *, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        2: ("memory.max", "memory.current", "inactive_file"),
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }[version]
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {files}\n")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 1,000 MB free, and the control groups that a test puts around the process."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {1000 * 1024} kB\n")
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    return tmp_path


def free(machine: Path, cgroup: str = "") -> int:
    (machine / "proc" / "self" / "cgroup").write_text(cgroup)
    found = available_memory(torch.device("cpu"))
    assert found is not None
    return found // MB


def test_a_container_of_version_2(machine) -> None:
    """Guards against a cache sized for the whole machine in a container that is killed at 500 MB. The process's own
    group may have no limit while a group around it has one."""
    groups = machine / "cgroup"
    assert free(machine) == 1000
    group(groups / "a" / "b", str(500 * MB), 300 * MB, 100 * MB, version=2)
    assert free(machine, "0::/a/b\n") == 300, "files that were read and may be forgotten are free"
    group(groups / "a" / "b", "max", 300 * MB, 0, version=2)
    assert free(machine, "0::/a/b\n") == 1000
    group(groups / "a", str(400 * MB), 350 * MB, 0, version=2)
    assert free(machine, "0::/a/b\n") == 50
    group(groups / "a", str(400 * MB), 450 * MB, 0, version=2)
    assert free(machine, "0::/a/b\n") == 0, "and never less than nothing"


def test_a_path_that_is_the_hosts(machine) -> None:
    """In a container, /proc may name the host's path, while the container's own group is the root of the folder that it
    sees."""
    group(machine / "cgroup", str(200 * MB), 150 * MB, 0, version=2)
    assert free(machine, "0::/docker/0123\n") == 50


def test_a_container_of_version_1(machine) -> None:
    group(machine / "cgroup" / "memory" / "docker", str(600 * MB), 500 * MB, 50 * MB, version=1)
    lines = "5:cpu,cpuacct:/docker\n4:hugetlb,memory:/docker\n0::/\n"
    assert free(machine, lines) == 150


def test_what_pytorch_keeps_on_a_gpu_is_free(monkeypatch) -> None:
    """Guards against refusing the same call the second time: PyTorch keeps the blocks of a freed cache, and the driver
    counts them as used."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 80)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert available_memory(torch.device("cuda")) == 60
