"""Frame targets for the demo teacher's pretraining, as fairseq's ``hubert_pretraining`` reads them.

Two streams at 50 Hz: ``phn``, the phone at the middle of the frame (from the synthesizer, exact), and ``km``, the
k-means cluster of the frame's MFCC (HuBERT's first iteration; here with mean and variance normalized per utterance). A
target folder has ``{train,valid}.{phn,km}`` (an utterance per line, in the manifest's order) and ``dict.{phn,km}.txt``.
"""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fairseq_star.manifest import SAMPLE_RATE, read_manifest
from fairseq_star.runtime.torchaudio_import import import_torchaudio
from manifests.demo.labels import frame_labels, read_segments

DOWNSAMPLE_RATE, RECEPTIVE_FIELD = 320, 400  # samples; of HuBERT's convolutions
NUM_CLUSTERS = 50
SPLITS = ("train", "valid")


def count_frames(num_samples: int) -> int:
    """Return the number of frames that HuBERT's convolutions make of an utterance."""
    return (num_samples - RECEPTIVE_FIELD) // DOWNSAMPLE_RATE + 1


def mfcc_features(path: str | os.PathLike) -> np.ndarray:
    """Return 13 MFCC with first and second differences (Kaldi's, as HuBERT's recipe takes them), frames x 39 at 50 Hz,
    normalized to mean 0 and variance 1 over the utterance. Frame t is centred on HuBERT's frame t."""
    import soundfile
    import torch

    torchaudio = import_torchaudio()
    samples, _ = soundfile.read(path, dtype="float32")
    # 25 ms windows each 10 ms are centred at 12.5 ms + 10 ms t, so every second one is centred like HuBERT's frame.
    cepstra = torchaudio.compliance.kaldi.mfcc(
        torch.from_numpy(samples)[None], sample_frequency=SAMPLE_RATE, use_energy=False
    ).T  # 13 x frames at 100 Hz
    first = torchaudio.functional.compute_deltas(cepstra)
    features = torch.cat([cepstra, first, torchaudio.functional.compute_deltas(first)]).T[::2]
    features = (features - features.mean(0)) / features.std(0, correction=0).clamp_min(1e-5)
    return features[: count_frames(len(samples))].numpy()


def write_targets(corpus: Path, out: Path, seed: int) -> None:
    """Write the target folder ``out`` of a demo corpus.

    Args:
        corpus: made by corpus.py.
        out: folder to create.
        seed: of k-means.

    Raises:
        StarError: the corpus lacks its manifests or its phone labels.
    """
    from sklearn.cluster import MiniBatchKMeans
    from tqdm import tqdm

    out.mkdir(parents=True, exist_ok=True)
    phones = read_segments(corpus / "labels" / "phones.txt")
    kmeans = None
    for split in SPLITS:
        root, entries = read_manifest(corpus / f"{split}.tsv")
        phone_targets = [
            frame_labels(phones[Path(entry.path).stem], count_frames(entry.num_samples)) for entry in entries
        ]
        _write(out, split, "phn", phone_targets)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            paths = [Path(root) / entry.path for entry in entries]
            features = list(tqdm(pool.map(mfcc_features, paths), f"MFCC of {split}", len(paths), unit="file"))
        if kmeans is None:
            kmeans = MiniBatchKMeans(NUM_CLUSTERS, batch_size=10_000, n_init=3, max_iter=20, random_state=seed)
            kmeans.fit(np.concatenate(features))
        _write(out, split, "km", [[str(cluster) for cluster in kmeans.predict(of_one)] for of_one in features])


def _write(out: Path, split: str, stream: str, targets: list[list[str]]) -> None:
    lines = [" ".join(of_one) + "\n" for of_one in targets]
    (out / f"{split}.{stream}").write_text("".join(lines), encoding="utf-8")
    if split == "train":
        counts = Counter(label for of_one in targets for label in of_one)
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        lines = [f"{label} {count}\n" for label, count in ordered]
        (out / f"dict.{stream}.txt").write_text("".join(lines), encoding="utf-8")
