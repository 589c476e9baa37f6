"""Files and folders that exist as a whole or not at all."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from multitoken.checkpoints.atomic import (
    COMPLETE,
    atomic_folder,
    check_output,
    disk_errors,
    is_complete,
    write_json,
    write_text,
)
from multitoken.checkpoints.provenance import command_line, git_revision, provenance
from multitoken.errors import OutputError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def old_checkpoint(folder):
    with atomic_folder(folder) as new:
        (new / "old.txt").write_text("old")


def fail_with(number):
    def fail(*arguments, **keywords):
        raise OSError(number, os.strerror(number))

    return fail


def test_write_json_replaces_the_whole_file(tmp_path):
    """Guards against remains of a longer old text, garbled letters, and temporary files that are not deleted."""
    path = tmp_path / "a.json"
    write_text(path, "x" * 1000)
    write_json(path, {"ü": [1, 2.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ü": [1, 2.5, None]} and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("where", ["replace", "fsync"])
def test_a_full_disk_keeps_the_old_file(where, tmp_path, monkeypatch):
    """Guards against a truncated metrics.json after a full disk."""
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(*((Path, "replace") if where == "replace" else (os, "fsync")), fail_with(errno.ENOSPC))
    with pytest.raises(OutputError, match=r"a\.txt: the disk is full"):
        write_text(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_folder_appears_whole_and_marked(tmp_path):
    """Guards against a reader that sees a folder while it is being filled."""
    target = tmp_path / "deep" / "out"
    with atomic_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")
        assert folder.parent == target.parent and not target.exists() and not is_complete(folder)
    assert is_complete(target) and names(target) == [COMPLETE, "sub"] and names(target.parent) == ["out"]


def test_modes_are_those_of_any_new_file(tmp_path):
    """Guards against tempfile's 0600 and 0700, which shut out the group and the web server."""
    old_checkpoint(tmp_path / "out")
    write_text(tmp_path / "a.txt", "")
    (tmp_path / "plain").mkdir()
    (tmp_path / "b.txt").touch()
    for ours, plain in (("out", "plain"), ("a.txt", "b.txt")):
        assert stat.S_IMODE((tmp_path / ours).stat().st_mode) == stat.S_IMODE((tmp_path / plain).stat().st_mode)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("overwrite", [True, False])
def test_an_interrupted_save_leaves_the_old_folder(error, overwrite, tmp_path):
    """Guards against losing the last good checkpoint, or leaving gigabytes behind, after Ctrl-C during a save."""
    target = tmp_path / "out"
    if overwrite:
        old_checkpoint(target)
    with pytest.raises(error), atomic_folder(target, overwrite=overwrite) as folder:
        (folder / "new.txt").write_text("new")
        raise error
    assert names(tmp_path) == (["out"] if overwrite else [])
    assert not overwrite or names(target) == [COMPLETE, "old.txt"]


def test_a_killed_save_is_not_complete(tmp_path):
    """Guards against an incomplete folder under the final name after kill -9, which no handler can catch."""
    code = (
        "import os, sys; from multitoken.checkpoints.atomic import atomic_folder\n"
        "with atomic_folder(sys.argv[1], overwrite=True) as folder:\n"
        "    (folder / 'new.txt').write_text('new'); os.kill(os.getpid(), 9)"
    )
    target = tmp_path / "out"
    old_checkpoint(target)
    assert subprocess.run([sys.executable, "-c", code, str(target)], check=False).returncode == -9
    assert names(target) == [COMPLETE, "old.txt"]
    assert not any(is_complete(path) for path in tmp_path.iterdir() if path != target)


def test_overwrite_replaces_all_of_the_old_folder(tmp_path):
    """Guards against old shards left next to new ones."""
    old_checkpoint(tmp_path / "out")
    with atomic_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new.txt").write_text("new")
    assert names(tmp_path / "out") == [COMPLETE, "new.txt"] and names(tmp_path) == ["out"]


def test_a_failed_swap_puts_the_old_folder_back(tmp_path, monkeypatch):
    """Guards against losing the old folder between the two renames."""
    target = tmp_path / "out"
    old_checkpoint(target)
    rename = Path.rename

    def second_fails(self, other):
        if (self / "new.txt").exists():
            raise OSError(errno.ENOSPC, "full")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(OutputError, match="disk is full"), atomic_folder(target, overwrite=True) as folder:
        (folder / "new.txt").write_text("new")
    assert names(target) == [COMPLETE, "old.txt"] and names(tmp_path) == ["out"]


def test_a_folder_filled_meanwhile_is_not_replaced(tmp_path):
    """Guards against two runs with the same output folder, of which the slower deletes the other's result."""
    target = tmp_path / "out"
    with pytest.raises(OutputError, match="not empty"), atomic_folder(target):
        old_checkpoint(target)
    assert (target / "old.txt").exists() and names(tmp_path) == ["out"]


def test_a_link_stays_a_link(tmp_path):
    """Guards against replacing a link to a big disk with a folder on the small one."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    old_checkpoint(tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and is_complete(tmp_path / "disk")


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
    ],
)
def test_disk_errors_in_words(number, says, tmp_path):
    """Guards against a traceback for a problem that the user can fix."""
    with pytest.raises(OutputError, match=f"cannot write out: .*{says}"), disk_errors("out"):
        fail_with(number)()
    with pytest.raises(FileNotFoundError), disk_errors("out"):
        (tmp_path / "none").read_text()


def test_check_output(tmp_path, monkeypatch):
    """Guards against refusing the output folder after the training instead of before it."""
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    old_checkpoint(tmp_path / "full")
    check_output(tmp_path / "new" / "deeper", overwrite=False)
    check_output(tmp_path / "empty", overwrite=False)
    check_output(tmp_path / "full", overwrite=True)
    assert names(tmp_path) == ["empty", "file", "full"], "checking makes nothing"
    with pytest.raises(OutputError, match=r"full exists and is not empty; .*--overwrite"):
        check_output(tmp_path / "full", overwrite=False)
    with pytest.raises(OutputError, match="file is a file"):
        check_output(tmp_path / "file", overwrite=True)
    with pytest.raises(OutputError, match="file is a file"):
        check_output(tmp_path / "file" / "under", overwrite=False)
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="is a mount point"):
        patch.setattr(os.path, "ismount", lambda path: path == tmp_path / "empty")  # a volume of a container
        check_output(tmp_path / "empty", overwrite=False)
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    with pytest.raises(OutputError, match="is not writable"):
        check_output(tmp_path / "new", overwrite=False)


def test_overwrite_never_takes_the_current_folder(tmp_path, monkeypatch):
    """Guards against `--output . --overwrite`, which would replace the user's whole project."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    for path in (".", "..", "~"):
        with pytest.raises(OutputError, match="never replaced"):
            check_output(Path(path).expanduser(), overwrite=True)


def test_the_command_line_names_no_machine_path(tmp_path, monkeypatch):
    """Guards against publishing user names and folders with a checkpoint, and against changing words of a prompt."""
    here, home = tmp_path / "here", tmp_path / "home"
    here.mkdir()
    home.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    argv = [
        "/usr/bin/multitoken",
        "adapt",
        f"{here}/model",
        f"--output={home}/out",
        f"{tmp_path}/x",
        "/no-path a b",
        "-k=4",
    ]
    assert command_line(argv) == "multitoken adapt model --output=~/out ../x '/no-path a b' -k=4"


def test_provenance(tmp_path, monkeypatch):
    """Guards against a record that is not JSON, that fails outside a git repository, or whose keys an extra value
    replaces."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    record = json.loads(json.dumps(provenance(seed=3)))
    assert record["seed"] == 3 and record["git_revision"] is None and record["date"].endswith("+00:00")
    assert set(record["versions"]) == {"multitoken", "torch", "transformers", "python"} and record["machine"]["cpu"]
    with pytest.raises(ValueError, match=r"provenance\(date=\.\.\.\)"):
        provenance(date="today")


def test_git_revision_says_dirty(tmp_path, monkeypatch):
    """Guards against naming a commit that does not contain the code that ran."""
    monkeypatch.chdir(tmp_path)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "t")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "t@example.org")
    (tmp_path / "a").write_text("1")
    for arguments in (["init", "-q"], ["add", "a"], ["commit", "-q", "-m", "a"]):
        subprocess.run(["git", *arguments], check=True)
    clean = git_revision()
    assert clean is not None and len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert git_revision() == f"{clean}-dirty"
