"""A compressed teacher cache: bytes an hour, and how far what STaR learns from is off.

    python -m benchmarks.cache --data demo/corpus --teacher assets/demo_teacher/demo_hubert.pt [--student CKPT ...]
    python -m benchmarks.cache --data ls --split train-100h --teacher hubert_base_ls960.pt

Every way is fitted to the sample that a run would take, and tried on utterances it was not fitted to: relative errors
of the Gram matrices X_l X_l^T, and of the loss's gradient, for a student near its teacher (a stand-in,
``teacher/cache/codec_fit.py``), for one of random weights, and for the students given. Bytes are those of the
rows; an entry's header and last block add 2 kB an utterance. Writes a dated .md and .json with ``--out``.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.measure import environment, heading, write_result
from fairseq_star.data.dataset import DistillationDataset
from fairseq_star.encoder.frames import Frames
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.formats import load_student, load_teacher
from fairseq_star.models.starhubert import StarHubertConfig, StarHubertModel
from fairseq_star.teacher.cache import codec_fit
from fairseq_star.teacher.cache.codec import SCALE_BYTES, Codec
from fairseq_star.teacher.cache.codec_fit import MOST_FRAMES, compressed, fit_codec, gradient_error, stand_in

NEAR, RANDOM = "near the teacher", "random weights"


def ways(width: int) -> dict[str, tuple[int | None, int]]:
    """Name -> coordinates kept (None: all dimensions) and bytes of a row."""
    half, quarter = width // 2, width // 4
    return {
        "int8": (None, width + SCALE_BYTES),
        f"pca, {width}": (width, width + SCALE_BYTES),
        f"pca, {half}": (half, half + SCALE_BYTES),
        f"pca, {quarter}": (quarter, quarter + SCALE_BYTES),
    }


def variants(codec: Codec) -> dict[str, Codec]:
    """The codec, and with other steps between its codes."""
    return {
        "": codec,
        ", equal steps": replace(codec, spreads=torch.ones_like(codec.spreads)),
        ", steps in proportion": replace(codec, spreads=codec.spreads.square()),
        ", mean not taken off": replace(codec, offsets=torch.zeros_like(codec.offsets)),
    }


def rounded(states: Sequence[Tensor]) -> list[Tensor]:
    """States as an uncompressed cache gives them."""
    return [state.half().float() for state in states]


def student_states(model: nn.Module, source: Tensor, geometry) -> list[Tensor]:
    """The L+1 states (1 x n x D_s) of an utterance's samples (1-D)."""
    with torch.no_grad():
        return list(model.encode(source[None], Frames.of(geometry, [len(source)], source[None])).hidden_states)


def errors_of(
    kept_of: Callable[[Sequence[Tensor]], tuple], exact: Sequence[Sequence[Tensor]], students: dict
) -> dict[str, float]:
    """Mean relative error of the gradient for each kind of student."""
    found = {}
    for name, states in students.items():
        errors = [gradient_error(x, *kept_of(x), y) for x, y in zip(exact, states, strict=True)]
        found[name] = sum(errors) / len(errors)
    return found


def gram_errors(kept_of: Callable, exact: Sequence[Sequence[Tensor]]) -> list[float]:
    """Mean over utterances of |X X^T - Z Z^T| / |X X^T|, of each state."""
    errors = []
    for states in exact:
        pairs = zip(kept_of(states)[0], states, strict=True)
        errors.append([float((z @ z.mT - x @ x.mT).norm() / (x @ x.mT).norm()) for z, x in pairs])
    return torch.tensor(errors).mean(0).tolist()


def run(options: argparse.Namespace) -> dict:
    """All ways' rows."""
    teacher = load_teacher(str(options.teacher), option="--teacher")
    dataset = DistillationDataset(
        str(options.data / f"{options.split}.tsv"),
        sample_rate=teacher.sample_rate,
        normalize=teacher.normalize,
        max_sample_size=None,
        min_sample_size=teacher.geometry.receptive_field,
        random_crop=False,
        pad_to_multiple=1,
        seed=0,
    )
    codec_fit.SAMPLE_FRAMES = options.frames
    sample, held_out = codec_fit.choose(dataset, teacher.geometry)

    def states(index: int) -> list[Tensor]:
        source = dataset[index]["source"]
        return [state[0].float() for state in teacher(source[None], [len(source)]).hidden_states]

    sources = [dataset[index]["source"] for index in held_out]
    exact = [[state[None, :MOST_FRAMES] for state in states(index)] for index in held_out]
    students = {NEAR: [stand_in(x) for x in exact]}
    for name, model in student_models(options, teacher).items():
        students[name] = [
            [state[:, :MOST_FRAMES] for state in student_states(model, source, teacher.geometry)] for source in sources
        ]

    per_hour = 3600 * teacher.sample_rate / teacher.geometry.downsample_rate * (teacher.num_layers + 1)
    rows = {}

    def add(name: str, kept_of: Callable, row_bytes: int, about: dict) -> None:
        grams = gram_errors(kept_of, exact)
        rows[name] = {
            "gb_an_hour": row_bytes * per_hour / 1e9,
            "gram": sum(grams) / len(grams),
            "worst_gram": max(grams),
            "gradient": errors_of(kept_of, exact, students),
        } | about

    add("float16", lambda x: (rounded(x), None), 2 * teacher.embed_dim, {})
    for name, (dim, row_bytes) in ways(teacher.embed_dim).items():
        codec = fit_codec(map(states, tqdm(sample, name, leave=False)), range(teacher.num_layers + 1), dim)
        tried = variants(codec) if options.steps and dim in (None, teacher.embed_dim) else {"": codec}
        for told, variant in tried.items():
            add(name + told, lambda x, codec=variant: compressed(codec, x), row_bytes, codec.about)
    return {
        "made_with": environment("cpu", shlex.join(["python", "-m", "benchmarks.cache", *sys.argv[1:]])),
        "teacher": f"{teacher.family}, {teacher.num_layers} layers of {teacher.embed_dim}",
        "sample_utterances": len(sample),
        "held_out": len(held_out),
        "rows": rows,
    }


def student_models(options: argparse.Namespace, teacher: FrozenEncoder) -> dict[str, nn.Module]:
    """Students by name, of as many layers as the teacher: one of random weights, and those given."""
    torch.manual_seed(0)
    random = StarHubertModel(StarHubertConfig(encoder_layers=teacher.num_layers, padded_group_norm=False)).eval()
    given = {path: load_student(path) for path in options.student}
    return {RANDOM: random} | {Path(path).stem: student.model.eval() for path, student in given.items()}


def table(result: dict) -> str:
    """Markdown of a result."""
    lines = heading("A compressed teacher cache", result["made_with"])
    lines += [
        f"* teacher: {result['teacher']}",
        f"* fitted to {result['sample_utterances']} utterances, tried on {result['held_out']} others",
        "",
        "| kept | GB an hour | of float16 | Gram matrices off by | worst layer | "
        + " | ".join(f"gradient, {name}" for name in next(iter(result["rows"].values()))["gradient"])
        + " |",
    ]
    plain = result["rows"]["float16"]["gb_an_hour"]
    lines.append("|---|" + "--:|" * (lines[-1].count("|") - 2))
    for name, row in result["rows"].items():
        lines.append(
            f"| {name} | {row['gb_an_hour']:.3f} | 1/{plain / row['gb_an_hour']:.1f} | {row['gram']:.2%} "
            f"| {row['worst_gram']:.2%} | " + " | ".join(f"{error:.2%}" for error in row["gradient"].values()) + " |"
        )
    return "\n".join([*lines, ""])


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the manifests")
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--student", nargs="*", default=[], help="checkpoints of students of as many layers")
    parser.add_argument("--steps", action="store_true", help="also with other steps between 8-bit codes")
    parser.add_argument("--frames", type=int, default=codec_fit.SAMPLE_FRAMES, help="of the sample")
    parser.add_argument("--out", type=Path, help="folder of the results (default: none is written)")
    options = parser.parse_args(arguments)
    result = run(options)
    print(table(result))
    if options.out is not None:
        write_result(options.out, f"cache-{result['made_with']['date']}-{options.data.name}", table(result), result)


if __name__ == "__main__":
    main()
