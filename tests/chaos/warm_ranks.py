"""Forks ranks from a process that has imported torch and DeepSpeed: see faults/warm_client.py.

Starting a rank costs 2 s of a core, nine tenths of them imports that are the same every time; the
chaos tests start some four hundred. What they test begins after the imports. `HPC_LLM_WARM=0` in
pytest's environment starts every rank from nothing, and so does `warm=False` of local_runs.run.

`python -m tests.chaos.warm_ranks SOCKET` serves until its standard input ends.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

from tests.chaos.faults import warm_client

REPOSITORY = Path(__file__).resolve().parents[2]
FAULTS = Path(__file__).parent / "faults"
PRELOADED = (
    "torch",
    "torch.profiler",
    "hydra",
    "hydra._internal.config_loader_impl",
    "hydra._internal.core_plugins.basic_launcher",
    "hydra._internal.core_plugins.basic_sweeper",
    "hydra.core.override_parser.overrides_parser",
    "numpy.random",
    "omegaconf",
    "psutil",
    "rich.live",
    "rich.progress",
    "rich.table",
    "submitit",
    "yaml",
    "numpy.fft",
    "setuptools",
    "deepspeed",
    "deepspeed.module_inject",
    "deepspeed.moe.utils",
    "deepspeed.ops.adam",
    "deepspeed.runtime.bf16_optimizer",
    "deepspeed.runtime.fp16.fused_optimizer",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.stage_1_and_2",
)
F_SETSIG = 10  # fcntl's; Python has no name for it


def environment(script: str | None = None) -> dict[str, str]:
    """Variables for processes whose ranks, or whose `script`, are to be warm; none: not wanted."""
    where = address()
    if where is None:
        return {}
    path = os.pathsep.join(filter(None, [str(FAULTS), os.environ.get("PYTHONPATH")]))
    wanted = {"WARM_RANKS": where, "PYTHONPATH": path}
    return wanted | ({"WARM_SCRIPT": script} if script else {})


@functools.cache
def address() -> str | None:
    """The socket of this worker's server, which is started at the first call; None: not wanted."""
    if os.environ.get("HPC_LLM_WARM") == "0":
        return None
    from hpc_llm.training import allocator

    folder = tempfile.TemporaryDirectory(prefix="warm-")
    atexit.register(folder.cleanup)
    path = f"{folder.name}/socket"
    given = {key: value for key, value in os.environ.items() if not key.startswith("HPC_LLM_")}
    given |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.warm_ranks", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=given | allocator.environment(given, allocator.library()),
        cwd=REPOSITORY,
        start_new_session=True,
    )
    atexit.register(server.kill)
    assert server.stdout is not None
    while server.stdout.readline() != b"ready\n":  # after what DeepSpeed says of itself
        assert server.poll() is None, "the server of warm ranks did not start"
    return path


def pid_of_fork(pid: int) -> int:
    """The fork that does the work of rank `pid`; `pid` itself where it was started from nothing."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "comm").read_text().strip()
        except OSError:
            continue
        if words == f"rank of {pid}":
            return int(folder.name)
    return pid


def main() -> None:
    """Serve."""
    _preload()
    ended, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(sys.argv[1])
    listening.listen(64)
    os.write(1, b"ready\n")
    clients: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        for file in (listening, ended, 0):
            selector.register(file, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if 0 in ready:  # whoever started us is gone
                break
            if ended in ready:
                os.read(ended, 4096)
                _report(clients)
            if listening in ready:
                connection, _ = listening.accept()
                try:
                    _fork(connection, clients, selector)
                except (OSError, ValueError, struct.error):
                    connection.close()
    for pid in clients:
        os.kill(pid, signal.SIGKILL)


def _preload() -> None:
    """Everything that ranks and verbs import of others; not torch's compiler, which few need."""
    for name in PRELOADED:
        importlib.import_module(name)
    assert not any(name.partition(".")[0] == "hpc_llm" for name in sys.modules)
    assert "torch._dynamo" not in sys.modules
    gc.collect()
    gc.freeze()


def _report(clients: dict[int, socket.socket]) -> None:
    while clients:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        connection = clients.pop(pid)
        with contextlib.suppress(OSError):
            connection.sendall(struct.pack("I", status))
        connection.close()


def _fork(connection: socket.socket, clients: dict[int, socket.socket], selector: Any) -> None:
    head, rights, _, _ = connection.recvmsg(4, socket.CMSG_LEN(4 * 4))
    files = array.array("i")
    for _, _, data in rights:
        files.frombytes(data)
    text = b""
    (size,) = struct.unpack("I", head)
    while len(text) < size:
        text += connection.recv(size - len(text))
    request = json.loads(text)
    if request["place"] != warm_client.place():
        connection.sendall(struct.pack("I", 0))
        connection.close()
    elif (pid := os.fork()) == 0:
        selector.close()
        for other in clients.values():
            other.close()
        _become(request, files)
    else:
        clients[pid] = connection
        connection.sendall(struct.pack("I", pid))
    for descriptor in files:
        os.close(descriptor)


def _become(request: dict[str, Any], files: array.array[int]) -> None:
    """The rank: all that the process at the other end is, as far as a fork can be."""
    status = 1
    try:
        _take_over(request, files)
        try:
            _run(request["argv"])
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _run(argv: list[str]) -> None:
    """`python argv…`, of a module or a script."""
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        sys.path[0] = str(Path(argv[0]).parent)
        runpy.run_path(argv[0], run_name="__main__")


def _take_over(request: dict[str, Any], files: array.array[int]) -> None:
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target in (0, 1, 2):
        os.dup2(files[target], target)
    life = os.dup(files[3])
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, F_SETSIG, signal.SIGKILL)  # from the kernel, when the other end is closed
    fcntl.fcntl(life, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        if os.read(life, 1) == b"":  # it is gone already
            os._exit(1)
    Path("/proc/self/comm").write_text(f"rank of {request['pid']}")
    for name, limits in request["limits"].items():
        resource.setrlimit(getattr(resource, name), tuple(limits))
    os.sched_setaffinity(0, request["cores"])
    os.umask(request["umask"])
    os.chdir(request["folder"])
    environment = request["environment"]
    environment.pop("HPC_LLM_SUPERVISOR", None)  # the process at the other end dies with it
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = [request["folder"], *request["path"]]
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    if environment.get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    for finder in list(sys.path_importer_cache):
        sys.path_importer_cache.pop(finder, None)
    # Its own processes are to be warm too, so WARM_RANKS stays.
    os.environ |= {"WARM_FORK": str(os.getpid()), "WARM_CLIENT": str(request["pid"])}
    runpy.run_path(str(Path(warm_client.__file__).with_name("sitecustomize.py")))


if __name__ == "__main__":
    main()
