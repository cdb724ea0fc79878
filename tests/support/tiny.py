"""Small stand-ins for what a user brings: a HuBERT checkpoint laid out as hubert_base_ls960.pt, audio and manifests."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile
import torch
from fairseq.data.dictionary import Dictionary
from fairseq.models.hubert.hubert import HubertConfig, HubertModel
from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig

TEACHER_CONV = "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2"
STUDENT = {
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "conv_feature_layers": "[(8,10,5)] + [(8,1,1)] + [(8,3,2)]*4 + [(D,1,1)] + [(D,2,2)]*2",
    "conv_pos": 16,
    "conv_pos_groups": 4,
}
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "dropout_input": 0.0}


def hubert_state(task: dict | None = None, seed: int = 0, **model: object) -> dict:
    """A HuBERT checkpoint's content with random weights and three layers of 24, but everything else as Base has it."""
    sizes = {
        "encoder_embed_dim": 24,
        "encoder_ffn_embed_dim": 48,
        "encoder_layers": 3,
        "encoder_attention_heads": 2,
        "conv_feature_layers": TEACHER_CONV,
        "conv_pos": 16,
        "conv_pos_groups": 4,
        "final_dim": 8,
        "label_rate": 50.0,
    }
    dictionary = Dictionary()
    for unit in range(5):
        dictionary.add_symbol(str(unit))
    model_config = HubertConfig(**{**sizes, **model})
    task_config = HubertPretrainingConfig(**{"data": "data", "label_rate": 50.0, "labels": ["km"], **(task or {})})
    torch.manual_seed(seed)
    hubert = HubertModel(model_config, task_config, [dictionary])

    def plain(config: object, name: str) -> dict:
        return {key: str(value) if isinstance(value, str) else value for key, value in asdict(config).items()} | {
            "_name": name
        }

    return {
        "args": None,
        "cfg": {"model": plain(model_config, "hubert"), "task": plain(task_config, "hubert_pretraining")},
        "task_state": {"dictionaries": [dictionary]},
        "optimizer_history": [{"optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 0}],
        "extra_state": {},
        "model": hubert.state_dict(),
    }


def ragged(num_samples: list[int], total: int | None = None, seed: int = 0) -> torch.Tensor:
    """B x samples of noise, zero beyond each utterance's end."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(len(num_samples), total or max(num_samples), generator=generator) * 0.1
    for utterance, samples in enumerate(num_samples):
        source[utterance, samples:] = 0
    return source


def write_teacher(path: Path, task: dict | None = None, **model: object) -> Path:
    torch.save(hubert_state(task, **model), path)
    return path


def write_audio(folder: Path, seconds: list[float], seed=0, sample_rate=16_000, channels=1) -> Path:
    """Files of shaped noise, one a duration."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for number, duration in enumerate(seconds):
        noise = generator.standard_normal((int(duration * sample_rate), channels)) * 0.1
        envelope = np.abs(np.sin(np.arange(len(noise)) * generator.uniform(1e-4, 1e-3)))[:, None]
        soundfile.write(folder / f"utt{number:03d}.wav", noise * envelope, sample_rate)
    return folder


def write_tsv(path: Path, folder: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    files = sorted(folder.glob("*.wav"))
    lines = [str(folder), *(f"{file.name}\t{soundfile.info(file).frames}" for file in files)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_corpus(root: Path, train: int = 12, valid: int = 3) -> Path:
    """A folder of ``train.tsv`` and ``valid.tsv`` over ragged utterances of 0.3 to 1.3 s."""
    durations = [0.3 + 0.13 * (number % 8) for number in range(train)]
    write_tsv(root / "train.tsv", write_audio(root / "audio" / "train", durations))
    write_tsv(root / "valid.tsv", write_audio(root / "audio" / "valid", durations[:valid], seed=1))
    return root
