"""Tiny students of random weights that fairseq's ``hubert_ctc`` was fine-tuned from, in its trainer's layout."""

from pathlib import Path

import torch
from fairseq.data.dictionary import Dictionary

from fairseq_star.deploy.targets import load_target
from fairseq_star.formats import export
from tests.support import convert_cases
from tests.support.runs import saved

LETTERS = ["|", "E", "T", "A", "'", "É"]
SUBWORDS = ["▁", "▁THE", "▁CAT", "S", "▁A", "Ñ"]
PHONES = ["AH", "B", "sil", "S"]
KINDS = {"letter": LETTERS, "sentencepiece": SUBWORDS, "none": PHONES}
EXTENSIONS = {"letter": "ltr", "sentencepiece": "spm", "none": "phn"}


def dictionary(symbols: list[str]) -> Dictionary:
    made = Dictionary()
    for symbol in symbols:
        made.add_symbol(symbol)
    return made


def state(folder: Path, kind: str = "letter", case: str | None = None) -> dict:
    """A checkpoint's content; tokens that no label has are improbable, as training makes them.

    Args:
        case: of ``convert_cases.CASES``; the tiny student when None.
    """
    student = convert_cases.tiny_student(folder) if case is None else convert_cases.student(folder, case)
    encoder = saved(export(student, load_target("fairseq")(), folder / "encoder.pt", force=True).path)
    labels = dictionary(KINDS[kind])
    torch.manual_seed(1)
    head = torch.nn.Linear(student.config.embed_dim, len(labels))
    head.weight.data *= 8  # far from ties
    head.bias.data[1:4] -= 100
    weights = {f"w2v_encoder.w2v_model.{key}": value for key, value in encoder["model"].items()}
    weights = {key: value for key, value in weights.items() if "final_proj" not in key}
    weights |= {f"w2v_encoder.proj.{key}": value.detach() for key, value in head.state_dict().items()}
    options = {
        "dropout": 0.0, "activation_dropout": 0.0, "dropout_input": 0.0, "attention_dropout": 0.0, "apply_mask": True,
        "mask_length": 10, "mask_prob": 0.65, "mask_selection": "static", "mask_other": 0.0, "no_mask_overlap": False,
        "mask_channel_length": 64, "mask_channel_prob": 0.5, "mask_channel_selection": "static",
        "mask_channel_other": 0.0, "no_mask_channel_overlap": False, "layerdrop": 0.1, "feature_grad_mult": 0.0,
        "final_dropout": 0.0, "freeze_finetune_updates": 0, "no_pretrained_weights": False,
    }  # fmt: skip
    model = {"_name": "hubert_ctc", "w2v_path": "gone.pt", "normalize": student.normalize, "w2v_args": encoder["cfg"]}
    task = {"_name": "audio_finetuning", "data": str(folder), "labels": EXTENSIONS[kind]}
    return {
        "args": None,
        "cfg": {
            "model": {**options, **model, "data": str(folder)},
            "task": {**task, "normalize": student.normalize},
            "criterion": {"_name": "ctc", "post_process": kind},
        },
        "model": weights,
        "task_state": {"target_dictionary": labels},
    }


def write(folder: Path, kind: str = "letter", case: str | None = None) -> Path:
    torch.save(state(folder, kind, case), folder / "tuned.pt")
    return folder / "tuned.pt"


def noise(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=generator) for length in lengths]
