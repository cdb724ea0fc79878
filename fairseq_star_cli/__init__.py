"""The command ``fairseq-star``, beside the package as ``fairseq_cli`` is beside fairseq.

Importing ``fairseq_star`` imports fairseq and registers, which takes seconds. With this package imported it does not:
help and a mistyped option are answered at once, and a command imports what it needs.
"""


def main() -> None:
    """Run the command that the command line names."""
    from fairseq_star.cli import main

    main()
