"""One process that has imported torch and forks a child a job: a job of seconds need not import for seconds.

The workflow starts it beside its jobs on this machine and puts its address into the environment; ``python -m crnet``
then hands its command over and stays as the job's face: signals, output and exit status are those of the child, and
whichever of the two dies takes the other along. Where there is no such process, commands run as ever.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NoReturn

from crnet.runtime import surroundings

ADDRESS = "CRNET_WARM"  # environment variable: folder of the Python environment, and path of the socket
COMMANDS = (
    "encoder",
    "features",
    "train",
    "trials",
    "evaluate",
    "probe",
    "sheet",
)  # of ``crnet job``, that import torch
MODULES = ("crnet.training.loop", "crnet.evaluation.trials", "crnet.evaluation.probe", "torch._dynamo")
LOST = 137  # as of a process killed by SIGKILL
_TERMINATE = b"T"
_started: list[subprocess.Popen] = []


def start(address: str = ".snakemake/warm") -> subprocess.Popen:
    """Start the server; it ends with this process, or when its ``stdin`` is closed.

    Args:
        address: Of its socket, which replaces one that a killed server left; as jobs see it from their own folder.
    """
    server = subprocess.Popen([sys.executable, "-m", "crnet.warm", address], stdin=subprocess.PIPE)
    _started.append(server)  # as long as it is referred to, its ``stdin`` is open
    os.environ[ADDRESS] = f"{_environment()}{os.pathsep}{address}"
    return server


def start_for_batch() -> None:
    """As ``start``, for the short jobs that a node of a cluster does for one submission; waits until it listens.

    Its socket lies in the node's own temporary folder: other nodes do batches of the same study.
    """
    folder = Path(tempfile.mkdtemp(prefix="crnet-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    server = start(str(folder / "warm"))
    while server.poll() is None and not (folder / "warm").exists():
        time.sleep(0.05)


def _environment() -> str:
    """Of the packages: the folder of the virtual or conda environment, by whichever links it was reached."""
    return os.path.realpath(sys.prefix)


def serve(address: str) -> None:
    """Accept commands until standard input closes."""
    surroundings.make_up()  # before there are children, whose streams are other files
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the workflow waits for its jobs, and they for this
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()  # a child's collector would write to all that is here, and so copy it: 0.15 s a job
    Path(address).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        mask = os.umask(0o077)  # nobody else may give it commands
        try:
            listener.bind(address)
        except OSError as error:
            sys.exit(
                f"crnet: no process is kept warm, as {address} cannot be made ({error}); jobs start a little later."
            )
        os.umask(mask)
        listener.listen(64)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _work(connection)
            connection.close()
    Path(address).unlink(missing_ok=True)


def _work(connection: socket.socket) -> NoReturn:
    """In the child: take over folder, environment, files and arguments of the job, and do it."""
    status = 1
    try:
        message, files = _receive(connection)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        sys.stdin = os.fdopen(0)
        os.chdir(message["folder"])
        os.environ.clear()
        os.environ.update(message["environment"])
        sys.argv[1:] = message["arguments"]
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=_watch, args=(connection,), daemon=True).start()
        from crnet.cli import main

        main()
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        _tell(connection, bytes([status]))
        os._exit(status)


def _watch(connection: socket.socket) -> NoReturn:
    """Pass on the notice of preemption; die with the face of the job."""
    while connection.recv(1) == _TERMINATE:
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGKILL)


def _tell(connection: socket.socket, message: bytes) -> None:
    with contextlib.suppress(OSError):  # the other has gone
        connection.sendall(message)


def _receive(connection: socket.socket) -> tuple[dict, list[int]]:
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    content = b""
    while len(content) < int.from_bytes(size):
        content += connection.recv(1 << 16)
    return json.loads(content), files


def hand_over(arguments: list[str]) -> int | None:
    """Have the server do a command and return its exit status; None if there is no server for it."""
    environment, _, address = os.environ.get(ADDRESS, "").rpartition(os.pathsep)
    # A job in an environment of its own has other packages, and maybe other versions.
    if environment != _environment() or arguments[:1] != ["job"] or arguments[1:2] not in [[c] for c in COMMANDS]:
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError:
        return None
    variables = {name: value for name, value in os.environ.items() if name != ADDRESS}
    message = {"arguments": arguments, "folder": os.getcwd(), "environment": variables}
    content = json.dumps(message).encode()
    signal.signal(signal.SIGTERM, lambda *_: _tell(connection, _TERMINATE))
    socket.send_fds(connection, [len(content).to_bytes(8)], [0, 1, 2])
    connection.sendall(content)
    status = connection.recv(1)
    return status[0] if status else LOST


if __name__ == "__main__":
    serve(sys.argv[1])
