"""The result of ``loss.py`` as a table, as JSON and as a picture."""

from pathlib import Path

from benchmarks.measure import heading, pyplot_or_none, write_result


def write_report(path: Path, result: dict) -> None:
    """Write path.json, path.md and path.png; ``result`` as ``loss.py`` makes it."""
    write_result(path.parent, path.name, _table(path.name, result), result)
    _plot(path.with_name(path.name + ".png"), result["rows"])


def _table(name: str, result: dict) -> str:
    """Markdown: what it was made with, then a line per length and batch."""
    dims = result["dims"]
    lines = heading("TGM loss alone, forward and backward", result["made_with"])
    lines += [
        f"* states: {dims['num_states']} of {dims['teacher_dim']} (teacher) and {dims['student_dim']} (student)",
        "* naive: stacked einsum and F.mse_loss; auto: `tgm_loss`; recompute: the same, computed again for backward",
        "* times: medians of alternating runs; faster: median of the ratios within a round",
        "* memory: peak beyond the states, gradients (which all must hand over) included",
        "",
        "| audio | B | form | naive ms | auto ms | faster | gram | tiled | recompute "
        "| naive MiB | auto MiB | recompute MiB | smaller |",
        "|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        memory = row.get("memory_mib")
        cells = [f"{row['seconds']:.0f} s", str(row["batch"]), row["form"]]
        cells += [f"{row[way]['median_ms']:.1f}" for way in ("naive", "auto")]
        cells += [f"{row[way]['speedup']:.2f}x" for way in ("auto", "gram", "tiled", "recompute")]
        if memory:
            cells += [f"{memory[way]:.0f}" for way in ("naive", "auto", "recompute")]
            cells.append(f"{memory['naive'] / memory['auto']:.1f}x" if memory["auto"] else "")
        else:
            cells += ["", "", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"![time and memory against audio length]({name}.png)", ""])


def _plot(path: Path, rows: list[dict]) -> None:
    """Time and peak memory against audio length, a column of panels per batch size."""
    pyplot = pyplot_or_none()
    if pyplot is None:
        return

    batches = sorted({row["batch"] for row in rows})
    with_memory = any("memory_mib" in row for row in rows)
    figure, axes = pyplot.subplots(
        1 + with_memory, len(batches), figsize=(5.5 * len(batches), 3.6 * (1 + with_memory)), squeeze=False
    )
    styles = {
        "naive": ("#b2182b", "-", "naive: stacked einsum"),
        "auto": ("#2166ac", "-", "fairseq_star.losses.tgm, auto"),
        "gram": ("#4d9221", ":", "always D x D"),
        "tiled": ("#e08214", ":", "always tiled T x T"),
        "recompute": ("#762a83", "--", "auto, recomputed in backward"),
    }
    for column, batch in enumerate(batches):
        own = [row for row in rows if row["batch"] == batch]
        measured = [row for row in own if "memory_mib" in row]
        for way, (color, line, label) in styles.items():
            panels = [(axes[0][column], own, [row[way]["median_ms"] for row in own])]
            if measured and way in measured[0]["memory_mib"]:
                panels.append((axes[1][column], measured, [row["memory_mib"][way] for row in measured]))
            for axis, points, values in panels:
                axis.plot(
                    [row["seconds"] for row in points],
                    values,
                    color=color,
                    linestyle=line,
                    marker="o",
                    markersize=3,
                    label=label,
                )
        axes[0][column].set(title=f"batch of {batch}", ylabel="forward + backward, ms")
        if with_memory:
            axes[1][column].set(ylabel="peak extra memory, MiB")
        for axis in axes[:, column]:
            axis.set(xlabel="audio, s", xlim=(0, None), ylim=(0, None))
            axis.grid(alpha=0.3)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
