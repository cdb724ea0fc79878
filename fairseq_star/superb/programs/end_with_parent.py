"""``end_with_parent.py PID PROGRAM ARGUMENT ...``: run a program that ends with process PID, which started it (Linux).

However that ends, SIGKILL included: a killed sweep leaves no process that still writes. It is a program of its own, as
the kernel has to be asked before anything slow is imported.
"""

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Ask the kernel for a SIGKILL when the parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was asked
        sys.exit(f"process {parent}, which started this, has ended")


def main(parent: str, program: str, *arguments: str) -> None:
    """Tie this process to its parent, then run the program."""
    end_with(int(parent))
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
