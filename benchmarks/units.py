"""What units of a teacher are worth beside MFCC's, and what k-means of a million frames takes.

    python -m benchmarks.units [--data demo/corpus] [--clusters 100]     # after make demo
    python -m benchmarks.units --quick                                   # a smoke run in seconds, no result to keep

Clusters are fitted to the training manifest's frames and measured on the other one's, whose phones are known by
construction. The million frames are noise of HuBERT Base's width in a file, clustered in a process of its own. Writes a
dated .md and .json.
"""

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.measure import MEBIBYTE, ROOT, environment, heading, write_result
from fairseq_star.analysis.probe.features import SpectralFeatures, read_samples
from fairseq_star.analysis.probe.labels import Utterance
from fairseq_star.analysis.units import kmeans
from fairseq_star.analysis.units.kmeans import Quality
from fairseq_star.analysis.units.run import measure, states_of_layer, utterances_of
from fairseq_star.errors import StarError
from fairseq_star.formats import load_teacher
from fairseq_star.runtime.job import process_bytes
from manifests.preparing import run_script

WIDTH = 768
MFCC = "MFCC and differences, each utterance of mean 0 and variance 1"


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "demo" / "corpus", help="default: demo/corpus")
    parser.add_argument("--teacher", type=Path, default=ROOT / "assets" / "demo_teacher" / "demo_hubert.pt")
    parser.add_argument("--clusters", type=int, default=100, help="default %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--quick", action="store_true", help="few frames and clusters")
    options = parser.parse_args(arguments)
    if not (options.data / "train.tsv").is_file():
        raise StarError(f"--data {options.data}: has no train.tsv; make the demo corpus with make demo")
    about = environment("cpu", " ".join(["python -m benchmarks.units", *(arguments or sys.argv[1:])]))
    rows = compare(options)
    million = in_its_own_process(*((20_000, 20) if options.quick else (1_000_000, 500)))
    text = "\n".join(
        [
            *heading("Units of the demo teacher", about),
            f"* {options.clusters} clusters, fitted to train.tsv, measured on valid.tsv",
            "",
            "| features | phone purity | cluster purity | phone information (PNMI) | clusters in use |",
            "|---|--:|--:|--:|--:|",
            *(_row(name, one) for name, one in rows.items()),
            "",
            f"k-means of {million['frames']:,} frames of {WIDTH} ({million['bytes'] / 1e9:.2f} GB) in "
            f"{million['clusters']} clusters: {million['seconds']:.0f} s in {million['passes']} passes, "
            f"{million['above_mib']:,.0f} MiB above the {million['before_mib']:,.0f} MiB of the process before.",
            "",
        ]
    )
    print(text)
    if not options.quick:
        values = {name: one.to_dict() for name, one in rows.items()}
        write_result(
            options.out, f"units-{date.today()}", text, {"environment": about, "quality": values, "million": million}
        )


def _row(name: str, one: Quality) -> str:
    shares = (one.phone_purity, one.cluster_purity, one.phone_information)
    return f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} | {one.used} |"


def compare(options: argparse.Namespace) -> dict[str, Quality]:
    """Quality of MFCC's clusters and of each layer's."""
    teacher = load_teacher(options.teacher, option="--teacher")
    train = utterances_of(str(options.data), "train", teacher)
    test = utterances_of(str(options.data), "valid", teacher, phones=True)
    if options.quick:
        train, test = train[:10], test[:5]
    spectral = SpectralFeatures("MFCC", teacher.geometry)

    def mfcc(utterance: Utterance) -> Tensor:
        return spectral(read_samples(utterance))[0][:, 0]

    features = {MFCC: mfcc}
    features |= {f"layer {layer}": states_of_layer(teacher, layer) for layer in range(1, teacher.num_layers + 1)}
    found = {}
    for name, states_of in features.items():
        frames = np.concatenate([states_of(one).float().numpy() for one in train])
        vectors, _ = kmeans.fit(frames, options.clusters, seed=0)
        found[name] = measure(vectors, test, states_of)
    return found


def in_its_own_process(num_frames: int, num_clusters: int) -> dict[str, float]:
    """Time and memory of k-means over a file of noise."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_cluster_noise, (num_frames, num_clusters))


def _cluster_noise(num_frames: int, num_clusters: int) -> dict[str, float]:
    with tempfile.NamedTemporaryFile(suffix=".f32") as file:
        rng = np.random.default_rng(0)
        for first in range(0, num_frames, 10_000):
            count = min(10_000, num_frames - first)
            centres = rng.integers(2 * num_clusters, size=count)[:, None] * np.linspace(-0.01, 0.01, WIDTH)
            (centres + rng.standard_normal((count, WIDTH))).astype(np.float32).tofile(file)
        file.flush()
        frames = np.memmap(file.name, np.float32, mode="r").reshape(-1, WIDTH)
        # The process's own, without pages of the file.
        before, began, seen = process_bytes("RssAnon"), time.perf_counter(), []
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                seen.append(process_bytes("RssAnon"))

        watching = threading.Thread(target=watch)
        watching.start()
        _, history = kmeans.fit(frames, num_clusters, seed=0)
        seconds = time.perf_counter() - began
        done.set()
        watching.join()
        return {
            "frames": num_frames, "bytes": frames.nbytes, "clusters": num_clusters, "seconds": seconds,
            "passes": len(history), "before_mib": before / MEBIBYTE,
            "above_mib": (max([before, *seen]) - before) / MEBIBYTE,
        }  # fmt: skip


if __name__ == "__main__":
    run_script(main)
