"""What tests need of the machine: other users, file systems that are full or read-only, and
processes that race.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 65534
_LIMIT_S = 60


def python(
    *words: str, cwd: Path, prefix: Sequence[str] = (), **more: Any
) -> subprocess.CompletedProcess[str]:
    """`python words…` with this checkout importable, as a user runs it; `prefix` is put before
    it.
    """
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **more.pop("environment", {})}
    command = [*prefix, sys.executable, *words]
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
        **more,
    )


@cache
def can_mount() -> bool:
    """Whether this user may have mounts of its own."""
    command = ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


def mounted(folder: Path, options: str) -> list[str]:
    """Words that run a command with a tmpfs on `folder` that nobody else sees."""
    return [
        "unshare",
        "-m",
        "sh",
        "-c",
        f'mount -t tmpfs -o {options} none "$0" && exec "$@"',
        str(folder),
    ]


def limit_file_size(num_bytes: int) -> None:
    """A file system that fills up, for those who may not mount: files of this process end at
    `num_bytes`.
    """
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


@contextlib.contextmanager
def folder_of_root(mode: int) -> Iterator[Path]:
    """A folder of this user's that others can reach, unlike tmp_path; `mode` keeps them out or lets
    them in.
    """
    with tempfile.TemporaryDirectory() as name:
        outer = Path(name)
        outer.chmod(0o755)
        folder = outer / "folder"
        folder.mkdir()
        folder.chmod(mode)
        yield folder
        folder.chmod(0o700)


def in_child(story: Callable[[], Any]) -> tuple[int, Any]:
    """Exit status and result of `story` in a fork of this process; negative for a signal, None
    without a result.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            os.write(writer, json.dumps(story()).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(told) if told else None


def as_nobody(story: Callable[[], Any]) -> Any:
    """Result of `story` as a user without privileges: file modes mean nothing to root."""

    def unprivileged() -> Any:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return story()

    status, result = in_child(unprivileged)
    assert status == 0
    return result


def killed_at(number: int, folder: Path, story: Callable[[], Any]) -> bool:
    """Run `story` in a fork that SIGKILLs itself before its `number`th change below `folder`;
    whether it got there.

    Changes are Python's own audit events: files opened to be written, renamed, removed, folders
    made, links.
    """
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if _changes(event, arguments, folder):
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    def watched() -> None:
        sys.addaudithook(hook)
        story()

    status, _ = in_child(watched)
    assert status in (0, -signal.SIGKILL)
    return status != 0


def _changes(event: str, arguments: tuple[Any, ...], folder: Path) -> bool:
    if event == "open":
        path, _, flags = arguments
        written = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return bool(written) and str(path).startswith(str(folder))
    if event in ("os.remove", "os.rmdir") and arguments[1] not in (None, -1):
        return True  # named relative to an open folder, as shutil.rmtree does
    changing = (
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.symlink",
        "os.chmod",
        "os.chown",
        "os.truncate",
    )
    return event in changing and any(
        str(argument).startswith(str(folder)) for argument in arguments[:2]
    )


def all_at_once(number: int, story: Callable[[int], Any]) -> list[Any]:
    """Results of `story(0)`, `story(1)`, … in as many processes that begin in the same moment."""
    gate, opener = os.pipe()
    children = []
    for index in range(number):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(opener)
                os.read(gate, 1)  # until the parent closes the other end
                os.write(writer, json.dumps(story(index)).encode())
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writer)
        children.append((child, reader))
    os.close(gate)
    os.close(opener)
    results = []
    for child, reader in children:
        with os.fdopen(reader, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(child, 0)
        assert status == 0, "a racing process failed; its traceback is above"
        results.append(json.loads(told))
    return results
