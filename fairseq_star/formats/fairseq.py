"""fairseq's checkpoints: HuBERT, wav2vec 2.0 and their fine-tuned forms to read, a HuBERT to write.

Checkpoints with ``cfg`` or, before hydra, ``args`` are read. A written one loads in fairseq unchanged, to dump features
of it or to fine-tune it with ``hubert_ctc``. It contains plain values and tensors alone, so that fairseq reads it under
torch's ``weights_only`` too, which refuses the classes in fairseq's own checkpoints. Parts of HuBERT that a student
lacks are written as follows:

* ``mask_emb``, the vector in place of masked frames in training, where the student was trained without any: zeros, its
  input where audio is padded. Fine-tuning with ``apply_mask`` trains it.
* ``final_proj``, of use in pretraining alone: zeros, one wide. ``hubert_ctc`` drops it.
* ``label_embs_concat`` and the dictionary of units: none. The task's ``dictionaries`` are ``[None]``, which fairseq
  understands as "for fine-tuning", so that no label files are needed.

No fairseq builds a ``hubert_ctc`` of any checkpoint by itself (facebookresearch/fairseq#4916): for fine-tuning, give
this plugin as ``common.user_dir``, see ``fairseq_hooks/hubert_ctc.py``. Loading and dumping features need no plugin.

Sources: ``fairseq/models/hubert/{hubert,hubert_asr}.py``, ``fairseq/models/wav2vec/{wav2vec2,wav2vec2_asr}.py``,
``fairseq/tasks/hubert_pretraining.py``.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task
from fairseq.data.dictionary import Dictionary
from fairseq.models.hubert.hubert import HubertConfig
from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_star.encoder.config import HUBERT_BASE
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.unit_head import TEMPERATURE, UnitHead
from fairseq_star.errors import StarError
from fairseq_star.formats import config
from fairseq_star.formats.building import build_frozen
from fairseq_star.formats.config import Section, config_of, encoder_config, sections
from fairseq_star.formats.student import Student, fairseq_state, model_values
from fairseq_star.formats.target import Target, batches

# Parts that serve pretraining only: to mask, to quantize, to predict.
PRETRAINING = ("mask_emb", "final_proj.", "target_glu.")
HUBERT_ONLY = (*PRETRAINING, "label_embs_concat")
WAV2VEC2_ONLY = (*PRETRAINING, "quantizer.", "input_quantizer.", "project_q.", "project_inp.")


@dataclass(frozen=True)
class Family:
    """A name that fairseq registers such models by."""

    title: str
    ignored: tuple[str, ...]
    prefix: str = ""  # of the encoder's keys in a fine-tuned model


FAMILIES = {
    "hubert": Family("HuBERT (fairseq)", HUBERT_ONLY),
    "wav2vec2": Family("wav2vec 2.0 (fairseq)", WAV2VEC2_ONLY),
    "hubert_ctc": Family("fine-tuned HuBERT (fairseq)", HUBERT_ONLY, "w2v_encoder.w2v_model."),
    "wav2vec_ctc": Family("fine-tuned wav2vec 2.0 (fairseq)", WAV2VEC2_ONLY, "w2v_encoder.w2v_model."),
    "hubert_seq2seq": Family("fine-tuned HuBERT (fairseq)", HUBERT_ONLY, "encoder.w2v_model."),
    "wav2vec_seq2seq": Family("fine-tuned wav2vec 2.0 (fairseq)", WAV2VEC2_ONLY, "encoder.w2v_model."),
}


def read_encoder(state: dict, *, name: str, valid_group_norm: bool = True) -> FrozenEncoder:
    """Build the encoder of a fairseq checkpoint and load its weights, every key accounted for.

    Args:
        state: the checkpoint.
        name: option and file in messages.
        valid_group_norm: see :func:`fairseq_star.formats.families.load_encoder`.

    Raises:
        StarError: the checkpoint is of another model, or its config and weights do not fit each other.
    """
    model, task = sections(config_of(state))
    weights, registered = state.get("model"), model.get("_name")
    if not isinstance(weights, dict) or not isinstance(registered, str):
        present = ", ".join(f"{str(key)[:40]!a}" for key in list(state)[:4]) or "nothing"
        raise StarError(
            f"{name} is no fairseq speech checkpoint: it lacks 'cfg' (or 'args') with a model, or the weights 'model' "
            f"(it holds {present}); give a whole checkpoint of HuBERT, wav2vec 2.0 or WavLM, or a HuggingFace folder"
        )
    if registered not in FAMILIES:
        raise StarError(
            f"{name} holds a {registered[:60]!a} model; a teacher is one of {', '.join(FAMILIES)}, starhubert, "
            "Microsoft's WavLM or a HuggingFace folder"
        )
    family = FAMILIES[registered]
    if family.prefix:
        outer, (model, task) = model, sections(model.get("w2v_args"))
        if model.get("_name") not in ("hubert", "wav2vec2"):
            raise StarError(
                f"{name} was fine-tuned, but its encoder's config (w2v_args) is no HuBERT's or wav2vec 2.0's; "
                "give the pretrained checkpoint"
            )
        if task.get("normalize") is None:  # older pretraining did not record it
            task["normalize"] = outer.get("normalize")
        # The heads are dropped, but no key of the encoder may be lost with them.
        weights = {key.removeprefix(family.prefix): value for key, value in weights.items()
                   if isinstance(key, str) and key.startswith(family.prefix)}  # fmt: skip
    return build_frozen(
        encoder_config(Section(model, name)),
        weights,
        family=family.title,
        name=name,
        ignored=family.ignored,
        valid_group_norm=valid_group_norm,
        unit_heads=_unit_heads(state, model) if registered == "hubert" else (),
        **Section(task, name).audio(normalize=False),
    )


def _unit_heads(state: dict, model: dict) -> list[UnitHead]:
    """Return the heads by which a pretrained HuBERT predicts units, one for each set of units.

    None are returned where it has none or where their parts do not fit each other: few runs need them.
    """
    names = ("label_embs_concat", "final_proj.weight", "final_proj.bias")
    parts = [state["model"].get(name) for name in names]
    if not all(isinstance(part, Tensor) and part.is_floating_point() for part in parts) or model.get("target_glu"):
        return []
    if [part.ndim for part in parts] != [2, 2, 1]:
        return []
    embeddings, weight, bias = parts
    recorded = state.get("task_state")
    dictionaries = recorded.get("dictionaries") if isinstance(recorded, dict) else None
    counts = [len(one) for one in dictionaries or () if isinstance(one, Dictionary)] or [len(embeddings)]
    sets = len(counts) if model.get("untie_final_proj") else 1
    width, temperature = model.get("encoder_embed_dim", HUBERT_BASE.embed_dim), model.get("logit_temp", TEMPERATURE)
    dim = embeddings.shape[-1]
    shapes = [(sum(counts), dim), (sets * dim, width), (sets * dim,)]
    whole = all(part.untyped_storage().nbytes() >= part.numel() * part.element_size() for part in parts)
    if not whole or [tuple(part.shape) for part in parts] != shapes:
        return []
    if not isinstance(temperature, float) or not temperature > 0:
        return []
    heads = []
    with torch.random.fork_rng(devices=[]):
        for number, units in enumerate(embeddings.split(counts)):
            rows = slice(number * dim, (number + 1) * dim) if sets > 1 else slice(None)
            head = UnitHead(width, len(units), dim, temperature)
            projection = {"final_proj.weight": weight[rows], "final_proj.bias": bias[rows]}
            head.load_state_dict({"label_embs": units, **projection})
            heads.append(head)
    return heads


def dropouts(state: dict, name: str) -> dict[str, float]:
    """Return the dropouts of a checkpoint's config, as :func:`config.dropouts` does."""
    return config.dropouts(Section(sections(config_of(state))[0], name))


class Fairseq(Target):
    """A checkpoint for ``load_model_ensemble_and_task``, ``model.w2v_path`` and ``dump_hubert_feature.py``."""

    title = "fairseq checkpoint"

    def write(self, student: Student, path: Path) -> None:
        width, label_rate = student.config.embed_dim, student.sample_rate / student.model.geometry.downsample_rate
        model = HubertConfig(
            **model_values(student.config, student.dropouts),
            label_rate=label_rate,
            final_dim=1,
            encoder_layerdrop=0.0,
            required_seq_len_multiple=1,
        )
        task = HubertPretrainingConfig(
            data="", labels=[], label_rate=label_rate, sample_rate=student.sample_rate, normalize=student.normalize
        )
        weights = {
            **student.weights(),
            "mask_emb": student.mask_or_zeros(),
            "final_proj.weight": torch.zeros(1, width),
            "final_proj.bias": torch.zeros(1),
        }
        state = fairseq_state(
            _plain(model, "hubert"),
            _plain(task, "hubert_pretraining"),
            weights,
            criterion="HubertCriterion",
            task_state={"dictionaries": [None]},
        )
        torch.save(state, path)

    @torch.no_grad()
    def hidden_states(self, path: Path, sources: Sequence[Tensor], *, padded: bool) -> list[list[Tensor]]:
        [model], _, task = load_model_ensemble_and_task([str(path)])
        model.eval()
        utterances = []
        # In fairseq the datasets normalize.
        for source, num_samples in batches(sources, padded=padded, normalize=task.cfg.normalize):
            padding_mask = torch.arange(source.size(1)) >= num_samples[:, None] if padded else None
            states, frame_mask = _states(model, source, padding_mask)
            valid = [slice(None)] * len(source) if frame_mask is None else ~frame_mask
            utterances += [[state[number, frames] for state in states] for number, frames in enumerate(valid)]
        return utterances

    def frame_lengths(self, geometry: FrameGeometry, num_samples: Sequence[int]) -> list[int]:
        # fairseq's HuBERT cuts the samples into as many equal chunks as there are frames and counts a frame as valid if
        # any sample of its chunk is: up to two frames more than the convolutions make of the utterance.
        total = geometry.num_frames(max(num_samples))
        chunk = max(num_samples) // total
        return [min(total, -(-number // chunk)) for number in num_samples]

    def next_step(self, path: Path) -> str:
        return (
            "fine-tune it on letters (DIR: train.tsv, train.ltr, valid.tsv, valid.ltr, dict.ltr.txt):\n"
            "  fairseq-hydra-train --config-dir configs --config-name finetune_ctc common.user_dir=fairseq_star \\\n"
            f"    task.data=DIR {override('model.w2v_path', str(path.resolve()))}"
        )


def _plain(config: object, name: str) -> dict:
    """Return a fairseq config as plain values, with all fields: fine-tuning overrides only those that are there."""
    return {**OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True, resolve=False), "_name": name}


def _states(model: nn.Module, source: Tensor, padding_mask: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
    """Return all hidden states (B x T x D) of fairseq's HuBERT, by hooks on its layers, and its frame mask (B x T)."""
    states = []
    layers = model.encoder.layers
    hooks = [layers[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].transpose(0, 1)))]
    hooks += [layer.register_forward_hook(lambda _, inputs, output: states.append(output[0].transpose(0, 1)))
              for layer in layers]  # fmt: skip
    last, frame_mask = model.extract_features(source, padding_mask, mask=False)
    for hook in hooks:
        hook.remove()
    return [*states[:-1], last], frame_mask


_UNQUOTED = re.compile(r"[\w/.+-]*", re.ASCII)  # texts that hydra's grammar takes without quotes in any context


def override(option: str, value: str) -> str:
    """Return ``option=value`` for a shell, so that hydra reads ``value`` as a text, not as a list or a number."""
    if _UNQUOTED.fullmatch(value):
        return f"{option}={value}"
    quoted = value.replace('"', '\\"')
    return shlex.quote(f'{option}="{quoted}"')
