"""A million manifest entries: time and peak memory of writing, checking and loading them.

    python -m benchmarks.manifests [--entries 1000000] [--scratch DIR] [--out benchmarks/results]

Makes, in a scratch folder that is removed again, so many symbolic links to one short FLAC in folders of a thousand, and
an s3prl table of them. Each way then runs in a process of its own, whose peak is its whole resident set, libraries
included (``VmHWM``, Linux):

    table     audio_list.py TABLE --trust-lengths, 2 % of the lines malformed
    folder    audio_folder.py ROOT --headers-only: every file opened
    check     the task's check of that manifest before training: every file opened again
    dataset   the task's dataset: the manifest loaded, sorted by length, formed into batches
"""

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WAYS = ("table", "folder", "check", "dataset")
PER_FOLDER = 1000
EVERY_BAD = 50  # one line of so many in the table has a field too few
NUM_SAMPLES = 16_000


def make_corpus(folder: Path, num_entries: int) -> None:
    """``folder/audio/<speaker>/<chapter>/*.flac``, links to one file, and ``folder/all.csv``."""
    import numpy as np
    import soundfile

    noise = np.random.default_rng(0).uniform(-0.1, 0.1, NUM_SAMPLES)
    soundfile.write(folder / "one.flac", noise, 16_000)
    with open(folder / "all.csv", "w", encoding="utf-8") as table:
        table.write(",file_path,length,label\n")
        for index in range(num_entries):
            part, place = divmod(index, PER_FOLDER)
            name = f"{part // 10:04d}/{part:06d}/{part // 10:04d}-{part:06d}-{place:04d}.flac"
            if place == 0:
                (folder / "audio" / name).parent.mkdir(parents=True)
            os.symlink(folder / "one.flac", folder / "audio" / name)
            table.write(f"{index},{name}\n" if index % EVERY_BAD == 7 else f"{index},{name},{NUM_SAMPLES},\n")


def run_way(way: str, folder: Path) -> int:
    """Runs one way in this process; returns the number of entries it dealt with."""
    if way == "table":
        from manifests import audio_list

        arguments = [str(folder / "all.csv"), "--root", str(folder / "audio"), "--out", str(folder / "table")]
        audio_list.main([*arguments, "--trust-lengths", "--skip-bad"])
        return count(folder / "table")
    if way == "folder":
        from manifests import audio_folder

        audio_folder.main([str(folder / "audio"), "--out", str(folder / "folder"), "--headers-only"])
        return count(folder / "folder")
    import fairseq_star.data.dataset as data

    manifest = str(folder / "folder" / "train.tsv")
    if way == "check":
        data.check_manifest(manifest, sample_rate=16_000)
        return count(folder / "folder", "train.tsv")
    dataset = data.DistillationDataset(
        manifest, sample_rate=16_000, normalize=False, max_sample_size=None, min_sample_size=400, random_crop=True,
        pad_to_multiple=1, seed=1,
    )  # fmt: skip
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_sentences=32)
    return sum(len(batch) for batch in batches)


def count(folder: Path, name: str = "*.tsv") -> int:
    """Entries in a folder's manifests."""
    num_entries = 0
    for path in folder.glob(name):
        with open(path, encoding="utf-8") as file:
            num_entries += sum(1 for _ in file) - 1
    return num_entries


def measure(way: str, folder: Path) -> None:
    """The child's side: prints what it measured as JSON."""
    start = time.perf_counter()
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        entries = run_way(way, folder)
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"way": way, "entries": entries, "seconds": seconds, "peak_mib": peak / 1024}))


def write_report(path: Path, made_with: dict, rows: list[dict]) -> None:
    """``path``.json and ``path``.md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({"made_with": made_with, "rows": rows}, indent=1) + "\n")
    lines = ["# Manifests of many entries", "", *(f"* {key}: {value}" for key, value in made_with.items()), ""]
    lines += ["| way | entries | seconds | peak MiB |", "|---|--:|--:|--:|"]
    lines += [f"| {r['way']} | {r['entries']:,} | {r['seconds']:.1f} | {r['peak_mib']:.0f} |" for r in rows]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000, help="default %(default)s")
    parser.add_argument("--scratch", type=Path, default=None, help="where to make the corpus (default: temporary)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options.measure[0], Path(options.measure[1]))
    rows = []
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="manifests-") as scratch:
        start = time.perf_counter()
        make_corpus(Path(scratch), options.entries)
        print(f"made {options.entries:,} links in {time.perf_counter() - start:.0f} s", flush=True)
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.manifests", "--measure", way, scratch]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(rows[-1]), flush=True)
    from benchmarks.measure import environment  # imports torch, which must not count above

    made_with = environment("cpu", shlex.join(["python", "-m", "benchmarks.manifests", *sys.argv[1:]]))
    name = f"manifests-{made_with['date']}-{options.entries}"
    write_report(options.out / name, made_with, rows)
    print(f"written: {options.out / name}.md, .json")
    return None


if __name__ == "__main__":
    main()
