"""How much a HuBERT's layers know of phones: a linear frame-level probe, tested on speakers it never heard.

    python -m benchmarks.phone_probe CORPUS [--checkpoint assets/demo_teacher/demo_hubert.pt]

CORPUS is a demo corpus (manifests/demo/corpus.py): the probe learns from ``train.tsv``, is tested on ``valid.tsv``,
whose speakers are others. Rows: MFCC with differences, the checkpoint's architecture with its initial random weights,
and the checkpoint; a column a layer (0 is the Transformer's input). The number is the share of frames classified
correctly.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import ROOT
from fairseq_star.errors import StarError
from fairseq_star.manifest import read_manifest
from manifests.demo.labels import frame_labels, read_segments
from manifests.demo.teacher_targets import count_frames, mfcc_features
from manifests.preparing import run_script

PROBE_STEPS, PROBE_BATCH = 1000, 1024


def layer_features(model: torch.nn.Module, path: Path) -> list[np.ndarray]:
    """All Transformer layers' outputs for one audio file, the Transformer's input first.

    Args:
        model: fairseq HuBERT in eval mode, for audio that is not normalized.
        path: 16 kHz mono audio.

    Returns:
        Layers + 1 arrays, frames x dimension.
    """
    import soundfile

    samples, _ = soundfile.read(path, dtype="float32")
    layers = model.encoder.layers
    states: list[torch.Tensor] = []
    handles = [layers[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))]
    handles += [layer.register_forward_hook(lambda _, inputs, output: states.append(output[0])) for layer in layers]
    try:
        with torch.no_grad():
            model(torch.from_numpy(samples)[None], mask=False, features_only=True)
    finally:
        for handle in handles:
            handle.remove()
    # fairseq runs layers time-first and pads to an even number of frames: drop the padding.
    return [state[: count_frames(len(samples)), 0].numpy() for state in states]


def linear_probe(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], num_classes: int, seed: int = 0
) -> float:
    """Multinomial logistic regression on features standardized by the training data's mean and deviation.

    Args:
        train: features (frames x dimension) and class numbers (frames).
        test: likewise.
        num_classes: classes.
        seed: of the choice of mini-batches.

    Returns:
        The share of test frames classified correctly.
    """
    mean, deviation = train[0].mean(0), train[0].std(0) + 1e-5
    inputs, held_out = (torch.from_numpy((x - mean) / deviation).float() for x in (train[0], test[0]))
    targets = torch.from_numpy(train[1])
    weight = torch.zeros(inputs.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, PROBE_STEPS)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(PROBE_STEPS):
        chosen = torch.randint(len(inputs), (PROBE_BATCH,), generator=generator)
        loss = torch.nn.functional.cross_entropy(inputs[chosen] @ weight + bias, targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        predicted = (held_out @ weight + bias).argmax(1).numpy()
    return float((predicted == test[1]).mean())


def probe(
    extract: Callable[[Path], list[np.ndarray]], splits: dict[str, list[tuple[Path, Sequence[str]]]], seed: int = 0
) -> list[float]:
    """``linear_probe`` for each of the arrays that ``extract`` makes of a file.

    Args:
        extract: audio file to arrays, frames x dimension.
        splits: "train" and "valid": audio files and their frames' phones.
        seed: see ``linear_probe``.
    """
    from tqdm import tqdm

    names = {phone for _, phones in splits["train"] for phone in phones}
    numbers = {phone: number for number, phone in enumerate(sorted(names))}
    data = {}
    for split, files in splits.items():
        made = [extract(path) for path, _ in tqdm(files, f"features of {split}", leave=False)]
        # A phone the training files lack can only be missed: -1 is no class.
        classes = np.array([numbers.get(phone, -1) for _, phones in files for phone in phones])
        data[split] = [(np.concatenate(of_layer), classes) for of_layer in zip(*made, strict=True)]
    return [
        linear_probe(train, valid, len(numbers), seed)
        for train, valid in zip(data["train"], data["valid"], strict=True)
    ]


def read_split(corpus: Path, split: str, num_files: int, seed: int = 0) -> list[tuple[Path, Sequence[str]]]:
    """``num_files`` audio files of a demo corpus, drawn over all speakers, with each frame's phone."""
    root, entries = read_manifest(corpus / f"{split}.tsv")
    phones = read_segments(corpus / "labels" / "phones.txt")
    order = np.random.default_rng(seed).permutation(len(entries))[:num_files]
    chosen = [entries[index] for index in sorted(order)]
    return [
        (Path(root) / entry.path, frame_labels(phones[Path(entry.path).stem], count_frames(entry.num_samples)))
        for entry in chosen
    ]


def load_models(checkpoint: Path, seed: int = 0) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The checkpoint's HuBERT and one of the same architecture with random weights, both in eval mode."""
    from fairseq import checkpoint_utils

    import fairseq_star  # noqa: F401  (lets torch read fairseq's checkpoints)

    (model,), config, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)])
    torch.manual_seed(seed)
    return model.eval(), task.build_model(config.model).eval()


def main() -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    default = ROOT / "assets" / "demo_teacher" / "demo_hubert.pt"
    parser.add_argument("--checkpoint", type=Path, default=default, metavar="FILE", help="default %(default)s")
    parser.add_argument("--train-files", type=int, default=200, help="default %(default)s")
    parser.add_argument("--test-files", type=int, default=80, help="default %(default)s")
    options = parser.parse_args()
    if not options.checkpoint.is_file():
        raise StarError(f"{options.checkpoint}: no such file; give a fairseq HuBERT checkpoint")
    splits = {
        "train": read_split(options.corpus, "train", options.train_files),
        "valid": read_split(options.corpus, "valid", options.test_files),
    }
    model, random_model = load_models(options.checkpoint)
    phones = [phone for _, of_file in splits["valid"] for phone in of_file]
    frequent = max(phones.count(phone) for phone in set(phones)) / len(phones)
    print(f"{len(phones)} test frames; the most frequent phone is {100 * frequent:.1f} % of them")
    rows = {
        "MFCC": lambda path: [mfcc_features(path)],
        "random weights": lambda path: layer_features(random_model, path),
        "checkpoint": lambda path: layer_features(model, path),
    }
    for name, extract in rows.items():
        accuracies = probe(extract, splits)
        print(f"{name:<16}" + "".join(f"{100 * accuracy:7.1f}" for accuracy in accuracies), flush=True)


if __name__ == "__main__":
    run_script(main)
