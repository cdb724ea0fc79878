"""The end of a process in which fairseq still loads ahead; stopping by signals: ``test_faults.py``."""

import sys

import pytest

from tests.support import runs

# Loads in torch's code all the time, as a collater does; nearly always in it when the interpreter ends.
LOADING = """
import time, torch, warnings
warnings.simplefilter("ignore")  # torch's own are none of ours
from fairseq.data.iterators import BufferedIterator
from fairseq_star.fairseq_hooks.stopping import end_loading_at_exit

class Batches:
    def __len__(self):
        return 1_000_000

    def __iter__(self):
        while True:
            batch = torch.ones(300)
            for _ in range(500):
                batch.add_(1)
            yield batch

torch.set_num_threads(1)
end_loading_at_exit()
batches = BufferedIterator({size}, Batches())
next(batches)
time.sleep({pause})
raise SystemExit({status})
"""


@pytest.mark.parametrize(
    ("size", "pause", "status"),
    [(1000, 0, 0), (1000, 0.01, 1), (2, 0.3, 0)],
    ids=["at once", "in mid-batch", "while the queue is full"],
)
def test_the_status_is_the_runs_own(size, pause, status):
    program = LOADING.format(size=size, pause=pause, status=status)
    finished = runs.run([sys.executable, "-c", program])
    assert finished.returncode == status, finished.stderr
    assert finished.stderr == ""
