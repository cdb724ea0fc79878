"""``fairseq-star export``."""

import argparse

from fairseq_star.errors import StarError
from fairseq_star.runtime.names import TARGET_OPTIONS, TARGETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command, and those of each target."""
    parser.add_argument(
        "checkpoint",
        help="checkpoint of a distillation run, such as runs/NAME/checkpoint_best.pt, or of a fine-tuned student",
    )
    parser.add_argument("--to", required=True, choices=TARGETS, help="the toolkit to write for")
    parser.add_argument(
        "--out",
        required=True,
        help="file to write (a folder for huggingface, for a fine-tuned student, with --embedding)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--dictionary", metavar="FILE", help="of a fine-tuned student: its labels, where the checkpoint holds none"
    )
    parser.add_argument(
        "--embedding",
        action="store_true",
        help="a program that gives one vector an utterance: the mean over its frames of the sum of layers that a "
        "classifier learned, or of all layers alike",
    )
    parser.conflict_handler = "resolve"  # two targets may have an option of the same name
    for target, options in TARGET_OPTIONS.items():
        group = parser.add_argument_group(f"options of --to {target}")
        for option, settings in options.items():
            group.add_argument(_flag(option), **settings)


def run(arguments: argparse.Namespace) -> None:
    """Export ``arguments.checkpoint`` and print the file, its accuracy, and the next step."""
    from fairseq_star.deploy.targets import load_target
    from fairseq_star.formats import export, load_tuned
    from fairseq_star.formats.classification import embed

    options = _options(arguments)
    target = load_target(arguments.to)(**options)
    student = load_tuned(arguments.checkpoint, "export", arguments.dictionary)
    if arguments.embedding:
        embed(student)
    exported = export(student, target, arguments.out, force=arguments.force)
    print(f"{exported.path}: {target.title}, {exported.num_bytes / 1e6:,.1f} MB")
    what = "hidden states" if student.head is None else student.head.title
    against = "the student" if student.reference is None else "fairseq"
    print(f"{what} against {against}'s, {target.measure}: {exported.alone:.1e} for each utterance alone, "
          f"{exported.batched:.1e} for three at once")  # fmt: skip
    if exported.runtimes:
        print(f"same texts in {', '.join(exported.runtimes)}")
    print(f"next: {target.next_step(exported.path)}")


def _options(arguments: argparse.Namespace) -> dict:
    """Return the constructor's arguments of the chosen target.

    Raises:
        StarError: an option of another target was given.
    """
    own = TARGET_OPTIONS.get(arguments.to, {})
    for options in TARGET_OPTIONS.values():
        for option, settings in options.items():
            if option not in own and getattr(arguments, option) != settings["default"]:
                raise StarError(f"{_flag(option)} is no option of --to {arguments.to}; leave it out")
    return {option: getattr(arguments, option) for option in own}


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
