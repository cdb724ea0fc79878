"""Parts of the report's page. Everything is text in one file: styles inline, pictures and audio as data URIs."""

import base64
from collections.abc import Sequence
from html import escape
from importlib import resources

# The page loads and runs nothing, whatever a file name or a label in it contains.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


class Pictures:
    """Pictures of a report by name, in the order they were added: theme -> PNG each."""

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}

    def figure(self, name: str, themes: dict[str, bytes], alt: str, caption: str = "") -> str:
        """Add a picture, ``{name}.png``, and return the HTML that shows it; ``caption`` is HTML."""
        self.files[name] = themes
        below = f"<figcaption>{caption}</figcaption>" if caption else ""
        return (
            f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_uri(themes["dark"])}">'
            f'<img src="{_uri(themes["light"])}" alt="{escape(alt)}"></picture>{below}</figure>'
        )


def _uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def page(title: str, body: Sequence[str]) -> str:
    """Return a whole page around the parts of its body."""
    styles = resources.files("fairseq_star.analysis.report").joinpath("page.css").read_text(encoding="utf-8")
    parts = "\n".join(body)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{styles}</style>
</head>
<body>
{parts}
</body>
</html>
"""


def facts(items: Sequence[tuple[str, str]]) -> str:
    """Return the key numbers at the top, each (number, description)."""
    shown = "".join(
        f'<div class="fact"><b>{escape(number)}</b><span>{escape(what)}</span></div>' for number, what in items
    )
    return f'<div class="facts">{shown}</div>'


def look(text: str) -> str:
    """Return a hint on what to look for; ``text`` is HTML."""
    return f'<p class="look">{text}</p>'


def pictures(figures: Sequence[str], maps: bool = False) -> str:
    """Return figures side by side where there is room."""
    return f'<div class="pictures{" maps" if maps else ""}">{"".join(figures)}</div>'


def folded(summary: str, content: str, is_open: bool = False) -> str:
    """Return ``content`` (HTML) under a line that unfolds it."""
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{content}</details>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, the first column of words, the others of numbers."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def audio(wav: bytes) -> str:
    """Return an audio player."""
    return f'<audio controls src="{_uri(wav, "audio/wav")}"></audio>'


def plain(text: str) -> str:
    """Return preformatted text, such as a config."""
    return f"<pre>{escape(text)}</pre>"
