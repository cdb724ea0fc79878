"""Tables and picture of ``benchmarks.device``."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.device_files import FLOAT
from benchmarks.measure import pyplot_or_none


def tables(result: dict) -> list[str]:
    """Lines of Markdown."""
    return [
        "## Files of whole utterances",
        "",
        *_table(
            ("weights", "parameters", "MB", "smaller", "cosine, lowest layer", "last layer", "worst frame", "phones",
             "minus float32"),
            [_file_row(about, result["files"][0]) for about in result["files"]],
        ),
        "",
        "## Whole utterances",
        "",
        *_table(
            ("audio", "threads", "weights", "real-time factor", "faster", "peak MiB", "last layer", "worst frame"),
            [_whole_row(row, result["peaks"]) for row in result["whole"]],
        ),
        "",
        "## Live",
        "",
        *_table(
            ("chunk", "weights", "MB", "threads", "real-time factor", "chunk p50 / p95 ms", "MB a stream", "last layer",
             "worst frame", "phones", "minus float32"),
            [_live_row(row, result["live files"]) for row in result["live"]],
        ),
        "",
        *(f"* {about['weights']}: refused ({about['refused']})"
          for about in [*result["files"], *result["live files"]] if "refused" in about),
    ]  # fmt: skip


def _table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)]


def _file_row(about: dict, first: dict) -> tuple:
    head = about["weights"], f"{about['parameters']:,}"
    if "refused" in about:
        return (*head, "refused", *[""] * 6)
    layers = about["layers"]
    sizes = f"{about['MB']:.1f}", f"{first['MB'] / about['MB']:.2f}x"
    return (*head, *sizes, f"{min(layers):.4f}", f"{layers[-1]:.4f}", f"{about['worst']:.4f}", *_phones(about))


def _phones(about: dict) -> tuple[str, str]:
    if "phones" not in about:
        return "", ""
    told = f"{about['phones']:.1%} ({about['interval'][0]:.1%} to {about['interval'][1]:.1%})"
    if "difference" not in about:
        return told, ""
    low, high = about["difference's interval"]
    return told, f"{100 * about['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _whole_row(row: dict, peaks: Sequence[dict]) -> tuple:
    [peak] = [one["MiB"] for one in peaks if (one["weights"], one["seconds"]) == (row["weights"], row["seconds"])]
    return (
        f"{row['seconds']:g} s", row["threads"], row["weights"], f"{row['real-time factor']:.4f}",
        f"{row['faster']:.2f}x", f"{peak:.0f}", f"{row['last layer']:.4f}", f"{row['worst']:.4f}",
    )  # fmt: skip


def _live_row(row: dict, files: Sequence[dict]) -> tuple:
    [size] = [about["MB"] for about in files if about["weights"] == row["weights"]]
    return (
        f"{20 * row['chunk_frames']} ms", row["weights"], f"{size:.1f}", row["threads"],
        f"{row['real-time factor']:.4f}", f"{row['p50 ms']:.1f} / {row['p95 ms']:.1f}", f"{row['MB a stream']:.2f}",
        f"{row['last layer']:.4f}", f"{row['worst']:.4f}", *_phones(row),
    )  # fmt: skip


def draw(result: dict, path: Path) -> None:
    """Accuracy against size (whole utterances), and against latency; nothing without labels or matplotlib."""
    sized = [about for about in result["files"] if "phones" in about]
    plt = pyplot_or_none() if sized else None
    if plt is None:
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained", sharey=True)
    for about in sized:
        _point(left, about["MB"], about, about["weights"], marker="o")
    left.set(xlabel="size, MB", ylabel="phones told right, % of test frames", title="whole utterances")
    live = [row for row in result["live"] if "phones" in row and row["threads"] == result["live"][0]["threads"]]
    for weights in dict.fromkeys(row["weights"] for row in live):
        rows = [row for row in live if row["weights"] == weights]
        right.plot([row["look-ahead ms"] for row in rows], [100 * row["phones"] for row in rows], "o-", label=weights)
    [whole] = [about["phones"] for about in sized if about["weights"] == FLOAT][:1] or [None]
    if whole is not None:
        right.axhline(100 * whole, color="0.4", linestyle="--", label="float32, whole utterances")
    right.set(xlabel="latency of the chunks, ms", title="live")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _point(axes, place: float, about: dict, label: str, marker: str) -> None:
    low, high = (100 * end for end in about["interval"])
    mean = 100 * about["phones"]
    axes.errorbar([place], [mean], yerr=[[mean - low], [high - mean]], fmt=marker, capsize=3, label=label)
