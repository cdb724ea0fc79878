"""Write manifests of any folder of audio: ``train.tsv`` and, held out by file, ``valid.tsv``.

    python manifests/audio_folder.py ROOT --out DIR [--valid-percent 1] [--seed 0] [--ext flac wav] [--resample DIR]

Every file below ROOT that ends in --ext (default: any extension that soundfile reads) must be 16 kHz mono, or is
converted with --resample. Others are named and left out; the script then exits with status 1, or 0 with --skip-bad.
Linked folders are followed, each folder is listed once. What else looks like audio (hidden files, other extensions,
macOS's leftovers) is counted in the last line.
The same files, seed and percentage always give the same manifests.
"""

import argparse
from pathlib import Path

from fairseq_star.errors import StarError
from manifests.finding import LeftOut, find_audio, readable_extensions
from manifests.preparing import (
    Found,
    add_options,
    add_split_options,
    check_copies,
    check_split_options,
    prepare,
    run_script,
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line described above and return the exit status.

    Raises:
        StarError: no such folder, no audio in it, or an option out of range.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of the audio")
    parser.add_argument("--ext", nargs="+", default=None, help="file extensions, such as flac wav")
    add_options(parser)
    add_split_options(parser)
    options = parser.parse_args(arguments)
    check_split_options(options)
    check_copies(options)
    left_out = LeftOut()
    paths = find_audio(options.root, options.ext or readable_extensions(), left_out)
    found = (path if isinstance(path, StarError) else Found(path) for path in paths)
    return prepare(options.root, found, options, left_out)


if __name__ == "__main__":
    run_script(main)
