"""Signals that come while torch computes a convolution."""

import subprocess
import sys

from tests.support import ROOT

# HuBERT's positional convolution, at the size of the embedded teacher's.
STORM = """
import signal, time
import torch
from fairseq_star.runtime.signals import handle_signals_on_a_stack_of_their_own

handle_signals_on_a_stack_of_their_own()
torch.set_num_threads(1)
came = 0

def handler(number, frame):
    global came
    came += 1

signal.signal(signal.SIGALRM, handler)
x, weight = torch.randn(2, 256, 499), torch.randn(256, 16, 128)
signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
end = time.monotonic() + 5
while time.monotonic() < end or came <= 100:  # a busy machine computes fewer, and each takes one signal
    torch.nn.functional.conv1d(x, weight, padding=64, groups=16)
signal.setitimer(signal.ITIMER_REAL, 0)
print("signals:", came)
"""


def test_memory_outlives_a_storm_of_signals():
    finished = subprocess.run([sys.executable, "-c", STORM], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout.removeprefix("signals: ")) > 100
