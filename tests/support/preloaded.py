"""Programs in processes of their own that begin with torch and fairseq imported: most of the time of a short run.

A server, one for each process of tests, has imported them and forks for each program. The fork is in all else as
``python -c PROGRAM`` is: arguments, environment, folder, standard streams, signals, status, and an interpreter that
ends as interpreters do. What differs: all programs of a server share one hash seed, and libraries that read the
environment when they are loaded (OpenMP) have read the server's.
"""

import contextlib
import functools
import gc
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy

from tests.support import ROOT

NUMBER = struct.Struct("i")  # a process id, then its status
SERVER = "from tests.support.preloaded import serve; exec(serve({control}))"


class Process:
    """``subprocess.Popen`` of ``python -c program arguments...``, as far as tests need it; text on both streams."""

    def __init__(self, program: str, arguments: list[str], *, start_new_session: bool = False):
        out, self.stdout = _pipe()
        err, self.stderr = _pipe()
        link, self._link = socket.socketpair()
        request = {
            "program": program, "arguments": arguments, "folder": str(ROOT), "session": start_new_session,
            "environment": {**os.environ, "OMP_NUM_THREADS": "1"},
        }  # fmt: skip
        with link:
            socket.send_fds(_server(), [b"."], [out, err, link.fileno()])
        os.close(out)
        os.close(err)
        self._link.sendall(json.dumps(request).encode() + b"\n")
        self.pid = self._number()
        self.returncode: int | None = None

    def _number(self) -> int:
        [number] = NUMBER.unpack(self._link.recv(NUMBER.size, socket.MSG_WAITALL))
        return number

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._link], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self.returncode = self._number()
            self._link.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that is still unread of both streams, once the process has ended; it is killed when time runs out."""
        with ThreadPoolExecutor(2) as readers, self.stdout, self.stderr:
            read = [readers.submit(stream.read) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            stdout, stderr = (text.result() for text in read)
        return stdout, stderr

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _pipe():
    """A pipe's end to write to, and a text file of what comes out of it."""
    read, write = os.pipe()
    return write, open(read, encoding="utf-8", errors="replace")


@functools.cache
def _server() -> socket.socket:
    """Starts the server, which ends with this process."""
    control, theirs = socket.socketpair()
    with theirs:
        subprocess.Popen(
            [sys.executable, "-c", SERVER.format(control=theirs.fileno())], cwd=ROOT, pass_fds=[theirs.fileno()],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    return control


def serve(control: int) -> str:
    """Run by the server: forks for each request. Returns in each fork, with the program that is to run."""
    import fairseq_cli.hydra_train  # noqa: F401  (and with it torch and all of fairseq)

    gc.freeze()  # forks need not look through all that is imported
    requests = socket.socket(fileno=control)
    while True:
        asked, files, _, _ = socket.recv_fds(requests, 1, 3)
        if not asked:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            return _run(*files)
        for file in files:
            os.close(file)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _run(out: int, err: int, link: int) -> str:
    """Forks once more: this process waits for the other and tells its id and status; returns in the other alone."""
    with socket.socket(fileno=link) as told, told.makefile(encoding="utf-8") as lines:
        request = json.loads(lines.readline())
        if (pid := os.fork()) != 0:
            os.close(out)
            os.close(err)
            told.sendall(NUMBER.pack(pid))
            told.sendall(NUMBER.pack(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
            os._exit(0)
    for stream, number in ((out, 1), (err, 2)):
        os.dup2(stream, number)
        os.close(stream)
    if request["session"]:
        os.setsid()
    # A shell lets what it runs in the background ignore Ctrl-C, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv[:] = ["-c", *request["arguments"]]
    numpy.random.seed()  # forks would all draw the same numbers
    return request["program"]
