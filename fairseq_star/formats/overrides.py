"""Commands that are printed for a user to copy: any path in them comes out of the shell, and of hydra, as it is."""

import re
import shlex

_PLAIN = re.compile(r"[\w/.+-]*", re.ASCII)  # what hydra's grammar takes unquoted, whatever surrounds it


def override(option: str, value: str) -> str:
    """``option=value`` for a shell, ``value`` being a text, not a list or a number, to hydra."""
    if _PLAIN.fullmatch(value):
        return f"{option}={value}"
    quoted = value.replace('"', '\\"')
    return shlex.quote(f'{option}="{quoted}"')
