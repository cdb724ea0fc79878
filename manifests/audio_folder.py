"""Writes manifests of any folder of audio: `train.tsv` and, held out by file, `valid.tsv`.

    python manifests/audio_folder.py ROOT --out DIR [--valid-percent 1] [--seed 0] [--ext flac wav]

Every file below ROOT that ends in --ext (by default: in anything soundfile can read) must be 16 kHz mono. Those that
are not are named and left out; the script then ends with status 1, or 0 with --skip-bad. The same files, seed and
percentage always give the same manifests.
"""

import argparse

import _repo_root  # noqa: F401
from fairseq_star.errors import StarError
from preparing import add_options, find_audio, read_lengths, run_script, split_by_file, write_manifests

MORE_EXTENSIONS = {"aif", "oga", "opus"}  # other names of formats soundfile lists
HEADERLESS = {"raw"}  # says neither its rate nor its channels


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's text. Returns the status to exit with.

    Raises:
        StarError: no such folder, no audio in it, or a percentage out of range.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--valid-percent", type=float, default=1.0, help="of the files; 0 for none (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="decides which files are held out (default 0)")
    parser.add_argument("--ext", nargs="+", default=None, help="file extensions, such as flac wav")
    options = parser.parse_args(arguments)
    if not 0 <= options.valid_percent < 100:
        raise StarError(f"--valid-percent {options.valid_percent}: must be from 0 to below 100; correct it")
    paths = find_audio(options.root, options.ext or _readable_extensions())
    num_samples, problems = read_lengths(options.root, paths, options.headers_only)
    train, valid = split_by_file(list(num_samples), options.valid_percent, options.seed)
    splits = {"train": train, "valid": valid} if valid else {"train": train}
    return write_manifests(options.root, options.out, splits, num_samples, problems, options.skip_bad)


def _readable_extensions() -> set[str]:
    import soundfile

    return {name.lower() for name in soundfile.available_formats()} - HEADERLESS | MORE_EXTENSIONS


if __name__ == "__main__":
    run_script(main)
