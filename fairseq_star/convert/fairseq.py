"""fairseq, unchanged: a HuBERT checkpoint to load, to dump features of, or to fine-tune with ``hubert_ctc``.

The file holds plain values and tensors alone, so that fairseq reads it under torch's ``weights_only`` too, which
refuses the classes in fairseq's own checkpoints. What HuBERT has and a student has not:

* ``mask_emb``, the vector put in place of masked frames in training: zeros, which is what the student sees where audio
  is padded. Fine-tuning with ``apply_mask`` trains it.
* ``final_proj``, of use in pretraining alone: zeros, one wide. ``hubert_ctc`` drops it.
* ``label_embs_concat`` and the dictionary of units: none. The task's ``dictionaries`` are ``[None]``, which fairseq
  understands as "for fine-tuning", so that no label files are needed.

No fairseq builds a ``hubert_ctc`` of any checkpoint by itself (facebookresearch/fairseq#4916): for fine-tuning this
plugin is given as ``common.user_dir``, see ``models/hubert_ctc.py``. Loading and dumping features need no plugin.

Source: fairseq, ``models/hubert/{hubert,hubert_asr}.py``, ``tasks/hubert_pretraining.py``.
"""

from pathlib import Path
from typing import Sequence

import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task
from fairseq.models.hubert.hubert import HubertConfig
from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_star.convert.student import Student, model_values
from fairseq_star.convert.target import Target, pad
from fairseq_star.frames import FrameGeometry
from fairseq_star.quoting import override


class Fairseq(Target):
    """A checkpoint for ``load_model_ensemble_and_task``, ``model.w2v_path`` and ``dump_hubert_feature.py``."""

    title = "fairseq checkpoint"

    def write(self, student: Student, path: Path) -> None:
        width, rate = student.config.embed_dim, student.sample_rate / student.model.geometry.downsample_rate
        model = HubertConfig(
            **model_values(student.config, student.dropouts),
            label_rate=rate,
            final_dim=1,
            encoder_layerdrop=0.0,
            required_seq_len_multiple=1,
        )
        task = HubertPretrainingConfig(
            data="", labels=[], label_rate=rate, sample_rate=student.sample_rate, normalize=student.normalize
        )
        pretraining = {
            "mask_emb": torch.zeros(width),
            "final_proj.weight": torch.zeros(1, width),
            "final_proj.bias": torch.zeros(1),
        }
        state = {
            "args": None,
            "cfg": {"model": _plain(model, "hubert"), "task": _plain(task, "hubert_pretraining")},
            "model": {**student.weights(), **pretraining},
            "criterion": None,
            "optimizer_history": [{"criterion_name": "HubertCriterion", "optimizer_name": "FairseqAdam",
                                   "lr_scheduler_state": {}, "num_updates": 0}],
            "extra_state": {"epoch": 1, "train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
            "task_state": {"dictionaries": [None]},
        }  # fmt: skip
        torch.save(state, path)

    @torch.no_grad()
    def hidden_states(self, path: Path, sources: Sequence[Tensor], *, padded: bool) -> list[list[Tensor]]:
        [model], _, task = load_model_ensemble_and_task([str(path)])
        model.eval()
        if task.cfg.normalize:  # which fairseq leaves to its datasets
            sources = [nn.functional.layer_norm(source, source.shape) for source in sources]
        utterances = []
        for batch in [list(sources)] if padded else [[source] for source in sources]:
            source, padding_mask = pad(batch)
            states, frame_mask = _states(model, source, padding_mask if padded else None)
            kept = [slice(None)] * len(batch) if frame_mask is None else ~frame_mask
            utterances += [[state[number, frames] for state in states] for number, frames in enumerate(kept)]
        return utterances

    def frame_lengths(self, geometry: FrameGeometry, num_samples: Sequence[int]) -> list[int]:
        """fairseq's HuBERT cuts the samples into as many equal chunks as there are frames and counts a frame as valid
        if any sample of its chunk is: up to two frames more than the convolutions make of the utterance."""
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
    """A fairseq config as plain values, all of its fields there: fine-tuning overrides only what it finds."""
    return {**OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True, resolve=False), "_name": name}


def _states(model: nn.Module, source: Tensor, padding_mask: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
    """All hidden states (B x T x D) of fairseq's HuBERT, seen by hooks on its layers, and its frame mask (B x T)."""
    states = []
    layers = model.encoder.layers
    hooks = [layers[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].transpose(0, 1)))]
    hooks += [layer.register_forward_hook(lambda _, inputs, output: states.append(output[0].transpose(0, 1)))
              for layer in layers]  # fmt: skip
    last, frame_mask = model.extract_features(source, padding_mask, mask=False)
    for hook in hooks:
        hook.remove()
    return [*states[:-1], last], frame_mask
