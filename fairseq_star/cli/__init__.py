"""``fairseq-star``: everything but training. A command is a module of ``fairseq_star.cli``."""

import argparse
import importlib
import logging
import os
import signal
import sys
import warnings

from fairseq_star.errors import exit_on_star_error

COMMANDS = {
    "classify": "audio files to one label each by a fine-tuned student: its checkpoint or an exported file",
    "doctor": "whether a finished, running or dead run is well: what is wrong, how sure that is, and what mends it",
    "evaluate": "losses of a student before and after training",
    "export": "a student, fine-tuned or not, for s3prl, fairseq, HuggingFace, torchaudio, TorchScript, ONNX, "
    "sherpa-onnx or torch.export, checked there",
    "import": "a student from another toolkit's file, or from the authors' .ckpt and .yaml",
    "plan": "how long a run will take and whether it fits, from a few steps of it on this machine",
    "probe": "how well a student's features predict phones, keywords and speakers, compared with its teacher's",
    "profile": "parameters, multiply-accumulates, speed and memory of models",
    "report": "a page on a run: losses, relation maps of teacher and student, similarity of layers, cost",
    "slice": "a student whose first weights are sliced out of its teacher, in a minute and without training",
    "stream": "frames of a streaming student, printed as the audio arrives",
    "superb": "a student on the eleven tasks of SUPERB, through s3prl, in one table",
    "teacher": "facts on a checkpoint, and the layers that a student would learn from",
    "transcribe": "audio files to text by a fine-tuned student: its checkpoint or an exported file",
    "units": "k-means centroids of a teacher layer, whose units a student can learn to predict",
}
LOG_FORMAT = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"  # fairseq's
MODULES = {"import": "import_checkpoint"}  # where a command's name cannot be a module's


def main(argv: list[str] | None = None) -> None:
    """Run the command that ``argv`` (the command line when None) names; ``--help`` alone lists them."""
    argv = sys.argv[1:] if argv is None else argv
    listing = "\n".join(f"  {name:<11}{text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="fairseq-star",
        description="Everything but training; `fairseq-star COMMAND --help` lists a command's options.",
        epilog=f"commands:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below")
    name = parser.parse_args(argv[:1]).command

    # Users of a command cannot act on the warnings of torch and fairseq about each other.
    warnings.filterwarnings("ignore", module=r"(torch|fairseq)\.")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format=LOG_FORMAT, datefmt="%Y-%m-%d %H:%M:%S")
    command = importlib.import_module(f"fairseq_star.cli.{MODULES.get(name, name)}")
    parser = argparse.ArgumentParser(prog=f"fairseq-star {name}", description=COMMANDS[name])
    command.add_arguments(parser)
    arguments = parser.parse_intermixed_args(argv[1:])  # options in any order
    logging.getLogger().setLevel(logging.WARNING)  # fairseq, if imported already, has set it lower
    with exit_on_star_error():
        try:
            command.run(arguments)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of the output has stopped, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would print an error at exit
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            print("\nfairseq-star: interrupted", file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from None
