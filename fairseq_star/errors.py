"""The one exception a user's input can cause, and how a command line prints it."""

from contextlib import contextmanager
from typing import Iterator


class StarError(ValueError):
    """Bad input, reported in one sentence that names the file, line or option and how to correct it."""


@contextmanager
def exit_on_star_error() -> Iterator[None]:
    """End the program with a ``StarError``'s sentence alone: fairseq and hydra would bury it under a traceback."""
    try:
        yield
    except StarError as error:
        raise SystemExit(f"fairseq-star: {error}") from None
