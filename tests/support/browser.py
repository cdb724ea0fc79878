"""A page in headless Chromium: what its pictures, its width and its console are, and how it looks."""

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--enable-logging=stderr",
    "--virtual-time-budget=20000", "--timeout=60000",
)  # fmt: skip

# The page under test sits in a frame of the wanted width, which no least width of a browser's window touches.
FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" style="border:0;width:{width}px;height:{height}px" srcdoc="{source}"></iframe><pre id="found"></pre>
<script>
document.getElementById("page").onload = () => {{
  const page = document.getElementById("page").contentDocument;
  const images = [...page.images];
  document.getElementById("found").textContent = JSON.stringify({{
    widths: images.map(image => image.naturalWidth),
    shown: images.filter(image => image.getBoundingClientRect().width > 100).length,
    overflow: page.documentElement.scrollWidth - {width},
    height: page.documentElement.scrollHeight,
    dark: page.defaultView.matchMedia("(prefers-color-scheme: dark)").matches,
    background: page.defaultView.getComputedStyle(page.body).backgroundColor,
  }});
}};
</script>"""


def find_chromium() -> str | None:
    """Path of the browser, None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def look(page: Path, width: int, dark: bool = False, screenshot: Path | None = None) -> dict:
    """Open a page ``width`` pixels wide.

    Returns:
        ``widths`` (natural, of every image; 0 = broken), ``shown`` (images laid out), ``overflow`` (pixels the page is
        too wide), ``height``, ``dark``, ``background``, ``console`` (lines it wrote).
    """
    with tempfile.TemporaryDirectory() as folder:
        source = html.escape(page.read_text(encoding="utf-8"))
        frame = Path(folder) / "frame.html"

        def open_frame(height: int, *flags: str) -> subprocess.CompletedProcess:
            frame.write_text(FRAME.format(width=width, height=height, source=source), encoding="utf-8")
            scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
            command = [find_chromium(), *FLAGS, *scheme, f"--user-data-dir={folder}/profile", *flags, frame.as_uri()]
            return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)

        done = open_frame(900, "--dump-dom")
        found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)[1]))
        found["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        if screenshot is not None:
            height = found["height"]
            open_frame(height, f"--window-size={max(width, 500)},{height}", f"--screenshot={screenshot}")
        return found
