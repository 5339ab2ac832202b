"""Ranks and verbs that start in 0.1 s of a core: forks of a process that has their imports.

`WARM_RANKS` names the socket of tests/chaos/warm_ranks.py. The process that a supervisor or srun
started stays what they signal and wait for; the fork gets its arguments, environment, folder, files
and limits, every signal that it gets, and dies with it at once. Where anything differs that a fork
cannot take over (user, namespaces, interpreter), the rank starts as usual.
"""

import array
import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys

NAMESPACES = ("mnt", "net", "pid", "user", "ipc", "uts")
VERBS = [f"hpc_llm.{verb}" for verb in ("train", "submit", "watchdog", "status", "freeze")]
LIMITS = [name for name in dir(resource) if name.startswith("RLIMIT_")]
_UNCAUGHT = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE}
_PR_SET_PDEATHSIG = 1


def place() -> dict:
    """What a fork cannot take over from another process."""
    return {
        "namespaces": [os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES],  # noqa: PTH115
        "users": [*os.getresuid(), *os.getresgid()],
        "python": [sys.executable, sys.prefix, sys.version],
    }


def become_warm(address: str, argv: list) -> None:
    """If a fork does `python argv…`, have it done and end as it does; return if refused."""
    is_verb = argv[:1] == ["-m"] and argv[1] in VERBS
    if not is_verb and argv[:1] != [os.environ.get("WARM_SCRIPT")]:
        return
    request = {
        "place": place(),
        "pid": os.getpid(),
        "argv": argv,
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109
        "path": sys.path,
        "umask": _umask(),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in LIMITS},
        "cores": sorted(os.sched_getaffinity(0)),
    }
    life, our_end = socket.socketpair()  # the fork is killed when our end is closed: by our death
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError:
        return
    _die_with_supervisor()
    text = json.dumps(request).encode()
    files = array.array("i", [0, 1, 2, life.fileno()])
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)]
    connection.sendmsg([struct.pack("I", len(text))], rights)
    connection.sendall(text)
    life.close()
    pid = _number(connection)
    if pid == 0:
        return
    for number in signal.valid_signals() - _UNCAUGHT:
        if number < signal.SIGRTMIN:
            signal.signal(number, lambda got, _: _pass_on(pid, got))
    status = _number(connection)
    our_end.close()
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _die_with_supervisor() -> None:
    """As the rank itself would, which is not its supervisor's child when it is a fork."""
    supervisor = os.environ.get("HPC_LLM_SUPERVISOR")
    if supervisor is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(supervisor):
        os.kill(os.getpid(), signal.SIGKILL)


def _pass_on(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _number(connection: socket.socket) -> int:
    """The next number that the other side says; it dies with us, and we with it."""
    data = b""
    while len(data) < 4:
        part = connection.recv(4 - len(data))
        if not part:
            os._exit(1)
        data += part
    return struct.unpack("I", data)[0]
