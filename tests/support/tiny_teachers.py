"""Every family a teacher can be of, tiny but laid out as the real ones, beside its original implementation.

Weights are random: norms, biases and position tables are moved off their first values, so that a part left out shows.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Callable

import torch
from fairseq.data.dictionary import Dictionary
from fairseq.models.hubert.hubert import HubertConfig, HubertModel
from fairseq.models.hubert.hubert_asr import HubertCtcConfig, HubertEncoder
from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model
from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig, Wav2VecEncoder
from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig
from omegaconf import OmegaConf
from torch import Tensor, nn

from tests.support import tiny

SIZES = {
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 48,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "conv_feature_layers": tiny.TEACHER_CONV,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "final_dim": 8,
}
# What tells the Large models of all families from the Base ones.
FAIRSEQ_LARGE = {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True}
HF_SIZES = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_buckets": 32,
    "max_bucket_distance": 64,
    "vocab_size": 12,
}
HF_LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
# From transformers' conversion script of WavLM, read from right to left.
MICROSOFT_NAMES = {
    "feature_projection.layer_norm": "layer_norm",
    "feature_projection.projection": "post_extract_proj",
    "encoder.pos_conv_embed.conv.parametrizations.weight.original0": "encoder.pos_conv.0.weight_g",
    "encoder.pos_conv_embed.conv.parametrizations.weight.original1": "encoder.pos_conv.0.weight_v",
    "encoder.pos_conv_embed.conv": "encoder.pos_conv.0",
    "attention.gru_rel_pos_linear": "self_attn.grep_linear",
    "attention.rel_attn_embed": "self_attn.relative_attention_bias",
    "attention.gru_rel_pos_const": "self_attn.grep_a",
    "attention.": "self_attn.",
    "feed_forward.intermediate_dense": "fc1",
    "feed_forward.output_dense": "fc2",
    "masked_spec_embed": "mask_emb",
}


@dataclass
class Original:
    """A saved teacher and what its own library computes."""

    path: Path
    layers: nn.ModuleList
    run: Callable[[Tensor, Tensor | None], object]  # of source and padding_mask, both B x samples
    time_first: bool  # whether the layers take T x B x D

    def hidden_states(self, source: Tensor, padding_mask: Tensor | None = None) -> list[Tensor]:
        """The first layer's input and each layer's output, B x T x D, seen by hooks on the layers themselves."""
        states = []

        def keep(value) -> None:
            value = value[0] if isinstance(value, tuple) else value
            states.append(value.transpose(0, 1).clone() if self.time_first else value.clone())

        hooks = [self.layers[0].register_forward_pre_hook(lambda _, inputs: keep(inputs))]
        hooks += [layer.register_forward_hook(lambda _, inputs, output: keep(output)) for layer in self.layers]
        with torch.no_grad():
            self.run(source, padding_mask)
        for hook in hooks:
            hook.remove()
        return states


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def _fairseq_original(path: Path, state: dict, model: nn.Module) -> Original:
    torch.save(state, path)

    def run(source, padding_mask):
        return model.extract_features(source, padding_mask, mask=False)

    return Original(path, model.encoder.layers, run, time_first=True)


def _plain(config: object, name: str) -> dict:
    return {**OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True, resolve=False), "_name": name}


def hubert(path: Path, normalize: bool = False, old: bool = False, **overrides) -> Original:
    config = HubertConfig(**{**SIZES, "label_rate": 50.0, **overrides})
    task = HubertPretrainingConfig(data="data", label_rate=50.0, labels=["km"], normalize=normalize)
    model = randomize(HubertModel(config, task, [_dictionary()]))
    cfg = {"model": _plain(config, "hubert"), "task": _plain(task, "hubert_pretraining")}
    args = _namespace({**cfg["model"], **cfg["task"], "arch": "hubert", "task": "hubert_pretraining"}) if old else None
    state = {"args": args, "cfg": None if old else cfg, "model": model.state_dict()}
    return _fairseq_original(path, state, model)


def _namespace(flat: dict) -> argparse.Namespace:
    """``args`` as checkpoints had them before hydra: flat, and without the names of its sections."""
    return argparse.Namespace(**{key: value for key, value in flat.items() if key != "_name"})


def _dictionary() -> Dictionary:
    dictionary = Dictionary()
    for unit in range(5):
        dictionary.add_symbol(str(unit))
    return dictionary


def wav2vec2(path: Path, normalize: bool = False, old: bool = False, **overrides) -> Original:
    config = Wav2Vec2Config(**SIZES, quantize_targets=True, latent_vars=4, **overrides)
    model = randomize(Wav2Vec2Model(config))
    settings, task = _plain(config, "wav2vec2"), {"_name": "audio_pretraining", "normalize": normalize}
    state = {"model": model.state_dict()}
    if old:
        flat = {**settings, **task, "arch": "wav2vec2", "task": "audio_pretraining", "sample_rate": 16_000}
        state["args"] = _namespace(flat)
    else:
        state["cfg"] = OmegaConf.create({"model": settings, "task": {**task, "sample_rate": 16_000}})
    return _fairseq_original(path, state, model)


def fine_tuned(path: Path, kind: str, old: bool = False, **overrides) -> Original:
    """``hubert_ctc`` or ``wav2vec_ctc``, its encoder made and named by fairseq's own class."""
    if kind == "hubert":
        model_config = _plain(HubertConfig(**SIZES, label_rate=50.0, **overrides), "hubert")
        task = HubertPretrainingConfig(data=".", label_rate=50.0, labels=["km"], normalize=True)
        w2v_args = {"model": model_config, "task": _plain(task, "hubert_pretraining")}
        config = HubertCtcConfig(w2v_args=OmegaConf.create(w2v_args), normalize=True, data=".", apply_mask=False)
        state = {"dictionaries": [_dictionary()]}
        # Without a target dictionary, because fairseq's HubertEncoder asks HubertCtcConfig for a field it has not.
        encoder = HubertEncoder(config, SimpleNamespace(state_dict=lambda: state, target_dictionary=None))
    else:
        model_config = _plain(Wav2Vec2Config(**SIZES, **overrides), "wav2vec2")
        w2v_args = {"model": model_config, "task": {"_name": "audio_pretraining", "data": ".", "normalize": True}}
        config = Wav2Vec2CtcConfig(w2v_args=OmegaConf.create(w2v_args), normalize=True, data=".", apply_mask=False)
        encoder = Wav2VecEncoder(config, 9)
    encoder = randomize(encoder)
    name = {"hubert": "hubert_ctc", "wav2vec2": "wav2vec_ctc"}[kind]
    weights = {f"w2v_encoder.{key}": value for key, value in encoder.state_dict().items()}
    weights |= {"w2v_encoder.proj.weight": torch.zeros(9, 24), "w2v_encoder.proj.bias": torch.zeros(9)}
    if old:
        flat = {**w2v_args["model"], **w2v_args["task"], "arch": kind}
        outer = argparse.Namespace(arch=name, w2v_args=_namespace(flat), normalize=True)
        state = {"args": outer, "model": weights}
    else:
        outer = {"model": {"_name": name, "w2v_args": w2v_args, "normalize": True}, "task": {"normalize": True}}
        state = {"args": None, "cfg": OmegaConf.create(outer), "model": weights}
    return _fairseq_original(path, state, encoder.w2v_model)


def huggingface(
    path: Path, kind: str, *, normalize: bool = True, headed: bool = False, save=None, **overrides
) -> Original:
    import transformers

    classes = {"hubert": "Hubert", "wav2vec2": "Wav2Vec2", "wavlm": "WavLM", "data2vec": "Data2VecAudio"}
    settings = {**HF_SIZES, **overrides}
    if kind == "data2vec":  # five convolutions of 19 frames, as the real ones have
        settings |= {"num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 19}
    config = getattr(transformers, f"{classes[kind]}Config")(**settings)
    config._attn_implementation = "eager"
    saved = getattr(transformers, classes[kind] + ("ForCTC" if headed else "Model"))(config)
    randomize(saved)
    (save or _save_pretrained)(saved, path)
    (path / "preprocessor_config.json").write_text(
        f'{{"do_normalize": {str(normalize).lower()}, "sampling_rate": 16000, "feature_size": 1}}'
    )
    model = getattr(saved, saved.base_model_prefix) if headed else saved

    def run(source, padding_mask):
        attention_mask = None if padding_mask is None else (~padding_mask).long()
        return model(source, attention_mask=attention_mask, output_attentions=True)

    return Original(path, model.encoder.layers, run, time_first=False)


def _save_pretrained(model, path: Path) -> None:
    model.save_pretrained(path)


def microsoft_wavlm(path: Path, normalize: bool = False, large: bool = False) -> Original:
    """A checkpoint in Microsoft's layout; the original is transformers' WavLM with the same weights."""
    original = huggingface(path.with_suffix(".hf"), "wavlm", **(HF_LARGE if large else {}))
    from safetensors.torch import load_file

    weights = {}
    for key, value in load_file(original.path / "model.safetensors").items():
        if key.startswith("feature_extractor."):
            inner = ".2.1." if large else ".2."
            key = key.replace(".conv.", ".0.").replace(".layer_norm.", inner)
        elif ".layers." in key:
            key = key.replace(".layer_norm.", ".self_attn_layer_norm.")
        for theirs, name in MICROSOFT_NAMES.items():
            if theirs in key:
                key = key.replace(theirs, name)
        weights[key] = value
    cfg = {key: value for key, value in SIZES.items() if key != "final_dim"} | {
        "extractor_mode": "layer_norm" if large else "default",
        "layer_norm_first": large,
        "conv_bias": large,
        "activation_fn": "gelu",
        "normalize": normalize,
        "relative_position_embedding": True,
        "num_buckets": 32,
        "max_distance": 64,
        "gru_rel_pos": True,
        "dropout": 0.1,
        "feature_grad_mult": 1.0,
    }
    torch.save({"cfg": cfg, "model": weights}, path)
    return Original(path, original.layers, original.run, time_first=False)
