"""Malformed, truncated and hostile teachers: each ends in one clear sentence, and nothing of them is run.

The HuggingFace folders here are written by hand, so that neither transformers nor a network is needed.
"""

import argparse
import copy
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fairseq_star import cli
from fairseq_star.formats import load_teacher
from tests.support.teacher_files import CONFIG, WEIGHTS, hf_config, hf_folder, refused

INDEX = "model.safetensors.index.json"


class Hostile:
    """Unpickled without protection, it runs a command."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def changed(state: dict, *path: str, to: object) -> dict:
    """A copy of ``state`` with one value exchanged."""
    state = copy.deepcopy(state)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return state


def wavlm_state(state: dict, **overrides) -> dict:
    """The layout of a WavLM of Microsoft's, with a HuBERT's weights."""
    config = {**state["cfg"]["model"], "relative_position_embedding": True, "gru_rel_pos": True, "normalize": False}
    return {"cfg": {**config, **overrides}, "model": state["model"]}


def model_value(key: str, value: object):
    return lambda s, m: changed(s, "cfg", "model", key, to=value)


def fine_tuned(state: dict, **model) -> dict:
    weights = {f"w2v_encoder.w2v_model.{key}": value for key, value in state["model"].items()}
    return {"cfg": {"model": {"_name": "hubert_ctc", **model}}, "model": weights}


CODE = "[(16,10,5)] + list(open({!r}, 'w'))"
# What a checkpoint file holds, made of a good state s and a marker m that must not be written -> part of the sentence.
CHECKPOINTS = {
    "os.system in cfg": (lambda s, m: changed(s, "cfg", "model", to=Hostile(m)), r"contains \w*\.?system"),
    "os.system in args": (lambda s, m: {"args": argparse.Namespace(a=Hostile(m)), "model": {}}, "contains"),
    "os.system in WavLM": (lambda s, m: {"cfg": {"encoder_layers": Hostile(m)}, "model": {}}, "contains"),
    "code": (lambda s, m: changed(
        s, "cfg", "model", "conv_feature_layers", to=CODE.format(str(m))), "conv_feature_layers"),
    "code in WavLM": (lambda s, m: wavlm_state(
        s, conv_feature_layers=CODE.format(str(m))), "conv_feature_layers"),
    "code in args": (lambda s, m: {"args": argparse.Namespace(
        arch="wav2vec2", conv_feature_layers=CODE.format(str(m))), "model": {}}, "conv_feature_layers"),
    "code in a student": (lambda s, m: {
        "cfg": {"model": {"_name": "starhubert", "conv_feature_layers": CODE.format(str(m))}},
        "task_state": {"sample_rate": 16_000, "normalize": False}, "model": {}}, "conv_feature_layers"),
    "code in w2v_args": (lambda s, m: fine_tuned(s, w2v_args=argparse.Namespace(
        arch="hubert", conv_feature_layers=CODE.format(str(m)))), "conv_feature_layers"),
    "an interpolation": (lambda s, m: {
        **s, "cfg": OmegaConf.create({"model": {"_name": "hubert", "encoder_layers": "${oc.env:HOME}"}})},
        "encoder_layers='.*HOME.*' where a whole number"),
    "a huge layer count": (model_value("encoder_layers", 10**9), "encoder_layers=1000000000 where"),
    "more layers than weights": (model_value("encoder_layers", 200), "encoder.layers.3.fc1.weight is missing and 393"),
    "a huge width": (model_value("encoder_ffn_embed_dim", 65_536), r"is \(48, 24\) instead of \(65536, 24\)"),
    "huge convolutions": (model_value("conv_feature_layers", "[(999999999,10,5)] * 7"), "instead of"),
    "no layers": (model_value("encoder_layers", 0), "encoder_layers=0 where"),
    "a negative width": (model_value("encoder_embed_dim", -24), "encoder_embed_dim=-24 where"),
    "a fractional width": (model_value("encoder_embed_dim", 24.0), "encoder_embed_dim=24.0 where"),
    "a wrong type": (model_value("conv_pos", "16"), "conv_pos='16' where"),
    "heads that do not divide": (model_value("encoder_attention_heads", 5), "5 attention heads"),
    "groups that do not divide": (model_value("conv_pos_groups", 7), "7 groups"),
    "an unknown extractor": (model_value("extractor_mode", "__import__('os')"), "default or layer_norm"),
    "an unknown activation": (model_value("activation_fn", "swish"), "activation_fn='swish'"),
    "a conformer": (model_value("layer_type", "conformer"), "not the plain Transformer"),
    "batch norm": (model_value("conv_pos_batch_norm", True), "conv_pos_batch_norm=True"),
    "conv layers of a wrong type": (model_value("conv_feature_layers", 7), "conv_feature_layers"),
    "a model name of a wrong type": (model_value("_name", ["hubert"]), "no fairseq speech checkpoint"),
    "a sample rate of a wrong type": (
        lambda s, m: changed(s, "cfg", "task", "sample_rate", to="16 kHz"), "sample_rate='16 kHz'"),
    "normalize of a wrong type": (
        lambda s, m: changed(s, "cfg", "task", "normalize", to="yes"), "normalize='yes'"),
    "weights that are no tensors": (
        lambda s, m: changed(s, "model", "encoder.layer_norm.weight", to=[1.0] * 24), "not named tensors"),
    "weights of whole numbers": (lambda s, m: changed(
        s, "model", "encoder.layer_norm.weight", to=torch.ones(24, dtype=torch.long)), "torch.int64"),
    "sparse weights": (lambda s, m: changed(
        s, "model", "encoder.layer_norm.weight", to=torch.ones(24).to_sparse()), "torch.sparse_coo"),
    "one number repeated": (lambda s, m: changed(
        s, "model", "encoder.layers.0.fc1.weight", to=torch.ones(1).expand(48, 24)), "fewer numbers than its shape"),
    "a small file of a huge width": (lambda s, m: {
        **changed(s, "cfg", "model", "encoder_embed_dim", to=65_536),
        "model": {**s["model"], "post_extract_proj.weight": torch.ones(1).expand(65_536, 16)}}, "fewer numbers"),
    "weights without content": (lambda s, m: changed(
        s, "model", "encoder.layer_norm.weight", to=torch.ones(24, device="meta")), "meta"),
    "an unknown weight": (
        lambda s, m: changed(s, "model", "encoder.extra.weight", to=torch.ones(1)), "extra.weight' is unknown"),
    "a weight named by a number": (lambda s, m: {**s, "model": {3: torch.ones(1)}}, "not named tensors"),
    "a name of many lines": (lambda s, m: changed(
        s, "model", "a\nTraceback\n" * 40, to=torch.ones(1)), "is unknown"),
    "fine-tuned without its encoder's config": (lambda s, m: fine_tuned(s), r"\(w2v_args\) is no HuBERT's"),
    "fine-tuned, w2v_args of a wrong type": (lambda s, m: fine_tuned(s, w2v_args=3), r"\(w2v_args\) is no HuBERT's"),
    "fine-tuned, encoder lost": (lambda s, m: {**fine_tuned(s, w2v_args=s["cfg"]), "model": {}}, "is missing"),
    "WavLM without gates": (lambda s, m: wavlm_state(s, gru_rel_pos=False), "no gated relative positions"),
    "WavLM of two buckets": (lambda s, m: wavlm_state(s, num_buckets=2), "2 buckets"),
    "WavLM's config, HuBERT's weights": (lambda s, m: wavlm_state(s), "relative_attention_bias.weight is missing"),
    "WavLM without weights": (lambda s, m: {"cfg": wavlm_state(s)["cfg"]}, "lacks the weights 'model'"),
    "a student without its audio format": (lambda s, m: {
        "cfg": {"model": {"_name": "starhubert"}, "task": {}}, "model": {}}, "does not say its audio's"),
    "a student without weights": (lambda s, m: {"cfg": {"model": {"_name": "starhubert_s"}}}, "lacks the weights"),
    "another model": (model_value("_name", "transformer_lm"), "holds a 'transformer_lm' model"),
    "weights alone": (lambda s, m: s["model"], "no fairseq speech checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(case, tmp_path, good_state):
    make, message = CHECKPOINTS[case]
    marker = tmp_path / "ran"
    torch.save(make(good_state, marker), tmp_path / "t.pt")
    refused(tmp_path / "t.pt", message)
    assert not marker.exists()


def unpacked(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


def safetensors(tensors: dict[str, tuple[list[int], int, int]], data: bytes) -> bytes:
    """A file in safetensors' layout: name -> shape, first and last byte."""
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [a, b]} for name, (shape, a, b) in tensors.items()}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def with_safetensors(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).unlink()
    unpacked(folder, "model.safetensors", content)


def with_index(folder: Path, index: object) -> None:
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps(index))


def rewritten(**overrides):
    return lambda folder: (folder / CONFIG).write_text(json.dumps(hf_config(**overrides)))


WHOLE = safetensors({"a": ([4], 0, 16)}, bytes(16))
# What is done to a good HuggingFace folder -> a part of the sentence.
FOLDERS = {
    "no config": (lambda folder: (folder / CONFIG).unlink(), "is a folder without config.json"),
    "an empty config": (lambda folder: unpacked(folder, CONFIG, b""), "no readable JSON"),
    "half a config": (lambda folder: unpacked(folder, CONFIG, b'{"model_type": "hub'), "no readable JSON"),
    "a config in another encoding": (lambda folder: unpacked(folder, CONFIG, b'{"a": "\xff\xfe"}'), "no readable JSON"),
    "a deep config": (lambda folder: unpacked(folder, CONFIG, b"[" * 200_000), "no readable JSON"),
    "a huge config": (lambda folder: unpacked(folder, CONFIG, b" " * (17 * 2**20)), "too large"),
    "a list for a config": (lambda folder: unpacked(folder, CONFIG, b"[1]"), "holds a list"),
    "another model": (rewritten(model_type="whisper"), "holds a 'whisper' model"),
    "remote code": (rewritten(model_type="custom", auto_map={"AutoModel": "evil.Model"}), "holds a 'custom' model"),
    "no width": (rewritten(hidden_size=None), r"post_extract_proj.weight is \(24, 16\) instead of \(768, 16\)"),
    "layers in words": (rewritten(num_hidden_layers="three"), "num_hidden_layers='three' where"),
    "convolutions of unequal number": (rewritten(conv_kernel=[10, 3]), "differ in length"),
    "a convolution of no width": (rewritten(conv_dim=[0] * 7), "a list of whole numbers"),
    "an unknown norm": (rewritten(feat_extract_norm="batch"), "group or layer"),
    "an impossible epsilon": (rewritten(layer_norm_eps=-1.0), "layer_norm_eps=-1.0 where"),
    "adapters": (rewritten(adapter_attn_dim=16), "puts adapters"),
    "a layer-norm config of group-norm weights": (rewritten(feat_extract_norm="layer"), "missing"),
    "a WavLM's config": (rewritten(model_type="wavlm"), "relative_attention_bias.weight is missing"),
    "a data2vec's config": (rewritten(model_type="data2vec-audio", num_conv_pos_embeddings=1), "1 positional conv"),
    "a damaged preprocessor config": (
        lambda folder: unpacked(folder, "preprocessor_config.json", b"{"), "preprocessor_config.json is no readable"),
    "a wrong preprocessor config": (
        lambda folder: unpacked(folder, "preprocessor_config.json", b'{"sampling_rate": "16"}'), "sampling_rate='16'"),
    "a damaged processor config": (
        lambda folder: unpacked(folder, "processor_config.json", b"["), "processor_config.json is no readable"),
    "a wrong processor config": (lambda folder: unpacked(
        folder, "processor_config.json", b'{"feature_extractor": {"do_normalize": "no"}}'), "do_normalize='no'"),
    "a processor config of another kind": (lambda folder: unpacked(
        folder, "processor_config.json", b'{"feature_extractor": [1]}'), "holds a list where its feature extractor's"),
    "spectrograms": (lambda folder: unpacked(
        folder, "preprocessor_config.json", b'{"feature_extractor_type": "WhisperFeatureExtractor"}'),
        "goes through a 'WhisperFeatureExtractor', where a teacher.s input is waveforms"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "but no weights"),
    "a hostile pickle": (
        lambda folder: torch.save({"a": Hostile(folder / "ran")}, folder / WEIGHTS), "pytorch_model.bin contains"),
    "a truncated pickle": (
        lambda folder: unpacked(folder, WEIGHTS, (folder / WEIGHTS).read_bytes()[:9000]), "is truncated or damaged"),
    "empty safetensors": (lambda folder: with_safetensors(folder, b""), "is an empty file"),
    "truncated safetensors": (lambda folder: with_safetensors(folder, WHOLE[:-5]), r"is truncated \(.* bytes of"),
    "a truncated header": (lambda folder: with_safetensors(folder, WHOLE[:30]), r"is truncated|is damaged"),
    "a Git LFS pointer": (lambda folder: with_safetensors(
        folder, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"), "is a Git LFS pointer"),
    "a web page": (lambda folder: with_safetensors(folder, b"<html>404</html>"), "no safetensors file"),
    "overlapping tensors": (lambda folder: with_safetensors(
        folder, safetensors({"a": ([4], 0, 16), "b": ([4], 0, 16)}, bytes(16))), "is damaged"),
    "a tensor beyond its data": (lambda folder: with_safetensors(
        folder, safetensors({"a": ([2**40], 0, 16)}, bytes(16))), "is damaged"),
    "an unknown weight": (lambda folder: with_safetensors(folder, WHOLE), "'a' is unknown"),
    "an index out of the folder": (
        lambda folder: with_index(folder, {"weight_map": {"a": "../../secret.safetensors"}}), "refused"),
    "an index of other files": (lambda folder: with_index(folder, {"weight_map": {"a": "config.json"}}), "refused"),
    "an index of a missing part": (
        lambda folder: with_index(folder, {"weight_map": {"a": "model-00001.safetensors"}}), "lacks 'model-00001"),
    "an index of nothing": (lambda folder: with_index(folder, {"weight_map": 3}), "no weight_map"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_huggingface_folders(case, tmp_path, good_state):
    folder = hf_folder(tmp_path / "hf", good_state)
    assert load_teacher(str(folder)).family == "HuBERT (HuggingFace)"  # or the case below proves nothing
    change, message = FOLDERS[case]
    change(folder)
    if (folder / "model.safetensors").exists():
        pytest.importorskip("safetensors")
    refused(folder, message)
    assert not (folder / "ran").exists()


def zipped(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")


# What a file is -> a part of the sentence.
FILES = {
    "a zip archive": (lambda path: zipped(path, ["a.txt"]), "is a zip archive"),
    "TorchScript": (
        lambda path: zipped(path, ["m/data.pkl", "m/constants.pkl", "m/code/x.py"]),
        "is a TorchScript program",
    ),
    "a Git LFS pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid"),
        "git lfs pull",
    ),
    "safetensors": (lambda path: path.write_bytes(WHOLE), "give the HuggingFace folder"),
    "JSON": (lambda path: path.write_text('{"model_type": "hubert"}'), "give the HuggingFace folder"),
    "a pickle of old": (
        lambda path: path.write_bytes(pickle.dumps({"a": 1})),
        "truncated or damaged|no fairseq speech",
    ),
    "ONNX": (lambda path: path.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x06"), "is an ONNX file.*fairseq-star import"),
    "no ONNX": (lambda path: path.write_bytes(b"\x08"), "no torch checkpoint"),
    "sound": (lambda path: path.write_bytes(b"RIFF\x24\x08\x00\x00WAVEfmt "), "no torch checkpoint"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_of_other_kinds(case, tmp_path):
    make, message = FILES[case]
    make(tmp_path / "t.pt")
    refused(tmp_path / "t.pt", message)


def test_the_command_ends_in_one_line(tmp_path):
    (tmp_path / "t.pt").write_bytes(b"<html>")
    with pytest.raises(SystemExit, match=r"fairseq-star: teacher: .*t\.pt is no torch checkpoint") as ended:
        cli.main(["teacher", str(tmp_path / "t.pt")])
    assert "\n" not in str(ended.value)
