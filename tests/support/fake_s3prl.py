"""Stands for s3prl's ``run_downstream.py`` in tests of what surrounds it: ``fake_s3prl.py PRINTED ARGUMENT ...``.

It writes checkpoints and a progress bar as s3prl does, and prints what s3prl printed (the folder PRINTED). It hangs in
the phase that ``FAKE_HANGS`` names, once it has left something there, and fails in tasks that ``FAKE_FAILS`` names.
"""

import argparse
import os
import sys
import time
import zipfile
from pathlib import Path

import yaml

TASKS = {"speech_commands": "ks", "fluent_commands": "ic", "emotion": "er"}


def main() -> None:
    printed = Path(sys.argv[1])
    parser = argparse.ArgumentParser()
    for option in "mtodcpukl":
        parser.add_argument(f"-{option}")
    parser.add_argument("-e", type=Path)
    parser.add_argument("--seed")
    parser.add_argument("--device")
    parser.add_argument("--features", nargs=2)
    parser.add_argument("--only-repeated", action="store_true")
    options = parser.parse_args(sys.argv[2:])
    folder = options.e.parent if options.e else Path(options.p)
    folder.mkdir(parents=True, exist_ok=True)
    if options.c:
        (folder / "task").write_text(TASKS[options.d])
        (folder / "steps").write_text(str(yaml.safe_load(Path(options.c).read_text())["runner"]["total_steps"]))
    task = (folder / "task").read_text()
    phase = "train" if options.m == "train" else "evaluate"
    with (folder.parent / "calls").open("a") as file:
        file.write(f"{phase}{f' -e {options.e.name}' if options.e else ''}\n")
    if task in os.environ.get("FAKE_FAILS", "").split():
        raise RuntimeError(f"{task} is told to fail")
    if phase == "train":
        for step in range(1, int((folder / "steps").read_text()) + 1):
            checkpoint(folder / f"states-{step}.ckpt")
            print(f"overall: 1%|x| {step}/{(folder / 'steps').read_text()} [00:01<00:01, 1it/s]", file=sys.stderr)
            hang(phase, folder)
        checkpoint(folder / "dev-best.ckpt")
    hang(phase, folder)
    print((printed / f"{task}.{phase}.txt").read_text())


def checkpoint(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", "weights")


def hang(phase: str, folder: Path) -> None:
    if os.environ.get("FAKE_HANGS") == phase:
        (folder.parent / "hanging").touch()
        time.sleep(60)


if __name__ == "__main__":
    main()
