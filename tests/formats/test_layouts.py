"""What people have of HuBERT and its relatives besides releases: other toolkits' files are read, or named for what they
are; and what this project exports comes back."""

import argparse
import re
import zipfile
from pathlib import Path

import pytest
import torch
import torchaudio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairseq_star.deploy.targets import load_target
from fairseq_star.encoder.config import HUBERT_CONVOLUTIONS
from fairseq_star.encoder.frames import parse_conv_layers
from fairseq_star.errors import StarError
from fairseq_star.formats import import_student, load_student, load_teacher, read_student
from fairseq_star.formats import torchaudio as layout
from fairseq_star.formats.torchaudio import torchaudio_state
from tests.support import convert_cases, tiny, tiny_teachers
from tests.support.teacher_files import JSON_VALUES, loads_or_is_refused
from tests.support.tiny import ragged

QUICK = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SAMPLES = [4_000, 3_000]
RELEASE = "hubert_base_ls960.pt"  # what people call all of these


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return convert_cases.tiny_student(tmp_path_factory.mktemp("student"))


def saved(folder: Path, state: object) -> str:
    torch.save(state, folder / RELEASE)
    return str(folder / RELEASE)


def same_states(path: str, other: str) -> None:
    source = ragged(SAMPLES)
    got, expected = (load_teacher(name)(source, SAMPLES).hidden_states for name in (path, other))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def named(path: str, message: str) -> None:
    """As a teacher and for import, one line says what it is, and never to give a file of the name it has."""
    for read in (load_teacher, read_student):
        with pytest.raises(StarError, match=message) as told:
            read(path)
        assert "\n" not in str(told.value)
        assert RELEASE not in str(told.value).replace(path, "")


# What this project exports.


KINDS = {
    "tiny": {},
    "projection": {**convert_cases.PROJECTION, **convert_cases.DROPOUTS},
    "pre_norm": convert_cases.PRE_NORM,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["torchaudio", "s3prl", "fairseq", "huggingface"])
def test_every_export_with_named_weights_comes_back_and_teaches(name, kind, tmp_path):
    student = convert_cases.tiny_student(tmp_path, **KINDS[kind])
    path = tmp_path / RELEASE
    load_target(name)().write(student, path)
    import_student(str(path), tmp_path / "back.pt")
    assert convert_cases.equal(load_student(str(tmp_path / "back.pt")), student)
    same_states(str(path), student.origin)


@pytest.mark.parametrize(("name", "kind"), [("torchscript", "a TorchScript program"), ("onnx", "an ONNX file")])
def test_programs_are_named_with_the_way_to_their_student(name, kind, student, tmp_path):
    path = tmp_path / RELEASE
    load_target(name)().write(student, path)
    named(str(path), f"is {kind}, .* give the checkpoint it was exported from, or import another export")


def test_a_program_of_torch_export_is_named_likewise(tmp_path):
    with zipfile.ZipFile(tmp_path / RELEASE, "w") as archive:
        archive.writestr("student/models/model.json", "{}")
        archive.writestr("student/byteorder", "little")
    named(str(tmp_path / RELEASE), "is a torch.export program, .* give the checkpoint it was exported from")


# s3prl's.


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2"])
def test_s3prls_own_conversion(kind, tmp_path):
    if kind == "hubert":
        from s3prl.upstream.hubert.convert import load_and_convert_fairseq_ckpt

        original, family = str(tiny.write_teacher(tmp_path / "original.pt", {"normalize": True})), "HuBERT (s3prl)"
    else:
        from s3prl.upstream.wav2vec2.convert import load_and_convert_fairseq_ckpt

        original, family = str(tmp_path / "original.pt"), "wav2vec 2.0 (s3prl)"
        tiny_teachers.wav2vec2(tmp_path / "original.pt", normalize=True)
        state = torch.load(original, weights_only=True)
        history = [{"optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 0}]
        torch.save({**state, "args": None, "optimizer_history": history, "extra_state": {}}, original)
    path = str(tmp_path / "converted" / RELEASE)
    load_and_convert_fairseq_ckpt(original, path)
    assert (load_teacher(path).family, load_teacher(path).normalize) == (family, True)
    same_states(path, original)
    assert convert_cases.equal(read_student(path), read_student(original))


def test_another_model_of_s3prls_is_named(tmp_path):
    state = {"task_cfg": {}, "model_cfg": {"_name": "data2vec_audio"}, "model_weight": {}}
    named(saved(tmp_path, state), "holds a 'data2vec_audio' model")
    named(saved(tmp_path, {"Config": {}, "Distiller": {}, "Args": argparse.Namespace()}), "s3prl's distiller")


# torchaudio's.

BUNDLES = {
    name: bundle
    for name in dir(torchaudio.pipelines)
    if isinstance(bundle := getattr(torchaudio.pipelines, name), torchaudio.pipelines.Wav2Vec2Bundle)
    and getattr(bundle, "_model_type", "Wav2Vec2") == "Wav2Vec2"
}


@pytest.mark.parametrize("name", BUNDLES)
def test_what_is_taken_for_a_state_dict_is_what_torchaudio_publishes(name):
    bundle = BUNDLES[name]
    arguments = bundle._params
    sizes = (arguments["encoder_embed_dim"], arguments["encoder_num_layers"])
    assert layout.PUBLISHED[sizes] == (arguments["encoder_num_heads"], arguments["encoder_ff_interm_features"])
    assert arguments["extractor_conv_layer_config"] in (None, parse_conv_layers(HUBERT_CONVOLUTIONS))
    layer_norm = arguments["extractor_mode"] == "layer_norm"
    assert layer_norm == arguments["encoder_layer_norm_first"] == bundle._normalize_waveform
    assert (arguments["encoder_pos_conv_kernel"], arguments["encoder_pos_conv_groups"]) == (128, 16)
    assert bundle.sample_rate == layout.SAMPLE_RATE


def test_there_are_models_of_torchaudios_to_compare():
    assert len(BUNDLES) > 15


def torchaudio_model(layer_norm: bool = False, **changes):
    arguments = {
        "extractor_mode": "layer_norm" if layer_norm else "group_norm",
        "extractor_conv_layer_config": None,
        "extractor_conv_bias": layer_norm,
        "encoder_embed_dim": 32,
        "encoder_projection_dropout": 0.1,
        "encoder_pos_conv_kernel": 128,
        "encoder_pos_conv_groups": 16,
        "encoder_num_layers": 2,
        "encoder_num_heads": 4,
        "encoder_attention_dropout": 0.2,
        "encoder_ff_interm_features": 48,
        "encoder_ff_interm_dropout": 0.3,
        "encoder_dropout": 0.25,
        "encoder_layer_norm_first": layer_norm,
        "encoder_layer_drop": 0.1,
        "aux_num_out": 5,
        **changes,
    }
    torch.manual_seed(0)
    return arguments, tiny_teachers.randomize(torchaudio.models.wav2vec2_model(**arguments))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_torchaudios_state_dicts(layer_norm, tmp_path, monkeypatch, caplog):
    """Alone, of a size that torchaudio publishes; with its arguments, of any."""
    arguments, model = torchaudio_model(layer_norm)
    source = ragged([4_000])
    with torch.no_grad():
        expected = model.extract_features(source)[0]
    path = saved(tmp_path, model.state_dict())
    named(path, r"torchaudio's weights alone \(2 layers of 32\), which state neither strides nor heads")
    monkeypatch.setitem(layout.PUBLISHED, (32, 2), (4, 48))
    teacher = load_teacher(path)
    assert "taking the strides and 4 heads of its published model" in caplog.text
    assert (teacher.family, teacher.normalize) == ("HuBERT or wav2vec 2.0 (torchaudio)", layer_norm)
    torch.testing.assert_close(teacher(source, [4_000]).hidden_states[1:], expected, atol=1e-5, rtol=1e-5)
    assert read_student(path).config == teacher.config

    monkeypatch.undo()
    path = saved(tmp_path, {"arguments": arguments, "state_dict": model.state_dict(), "normalize": True})
    teacher = load_teacher(path)
    assert teacher.normalize
    torch.testing.assert_close(teacher(source, [4_000]).hidden_states[1:], expected, atol=1e-5, rtol=1e-5)
    assert read_student(path).dropouts["activation_dropout"] == 0.3


def test_torchaudios_wavlm_is_named(tmp_path):
    model = torchaudio.models.wavlm_model(
        "group_norm", [(8, 10, 5), (8, 3, 2)], False, 16, 0.1, 16, 4, 1, 2, 32, 64, 0.1, 32, 0.1, 0.1, False, 0.1, None
    )
    named(saved(tmp_path, model.state_dict()), "a state dict of torchaudio's WavLM, which is not read")


@QUICK
@given(data=st.data())
def test_any_value_among_torchaudios_arguments(data, student, tmp_path):
    state = torchaudio_state(student)
    key = data.draw(st.sampled_from([*state["arguments"], "normalize", "sample_rate", "state_dict"]))
    value = data.draw(JSON_VALUES)
    if key in state:
        state[key] = value
    else:
        state["arguments"] = {**state["arguments"], key: value}
    loads_or_is_refused(Path(saved(tmp_path, state)))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("encoder.transformer.layers.0.attention.extra", "layers.0.attention.extra' is unknown"),
        ("feature_projection.layer_norm.weight", "'feature_projection.layer_norm.weight' is unknown"),  # twice
        (7, "not named tensors"),
    ],
)
def test_a_key_of_torchaudios_that_has_no_place(key, message, student, tmp_path):
    state = torchaudio_state(student)
    state["state_dict"] = {**state["state_dict"], key: torch.ones(8)}
    with pytest.raises(StarError, match=re.escape(message)):
        load_teacher(saved(tmp_path, state))


# DPHuBERT's.


NARROW = [(8, kernel, stride) for _, kernel, stride in parse_conv_layers(HUBERT_CONVOLUTIONS)]


def dphubert_state(conv_layers=NARROW, **changes) -> dict:
    """A HuBERT as DPHuBERT's own scripts convert it, and what they write after pruning: one number a layer."""
    arguments, model = torchaudio_model(aux_num_out=None, extractor_conv_layer_config=conv_layers)
    layers = arguments.pop("encoder_num_layers")
    config = {
        **arguments,
        "encoder_num_layers": layers,
        "encoder_use_attention": [True] * layers,
        "encoder_use_feed_forward": [True] * layers,
        "encoder_num_heads": [4] * layers,
        "encoder_head_dim": 8,
        "encoder_ff_interm_features": [48] * layers,
        "normalize_waveform": False,
        "encoder_prune_attention_heads": False,
    }
    return {"state_dict": model.state_dict(), "config": {**config, **changes}, "distill_linear_projs": {}}


def test_a_model_of_dphuberts_with_layers_alike(tmp_path):
    _, model = torchaudio_model(aux_num_out=None, extractor_conv_layer_config=NARROW)
    path = saved(tmp_path, dphubert_state(normalize_waveform=True))
    source = ragged([4_000])
    with torch.no_grad():
        expected = model.extract_features(source)[0]
    teacher = load_teacher(path)
    assert (teacher.family, teacher.normalize) == ("HuBERT or wav2vec 2.0 (DPHuBERT)", True)
    torch.testing.assert_close(teacher(source, [4_000]).hidden_states[1:], expected, atol=1e-5, rtol=1e-5)
    assert read_student(path).dropouts["dropout_input"] == 0.1


def test_convolutions_that_pruning_left_of_different_widths(tmp_path):
    layers = [(9, 10, 5), (7, 3, 2), (11, 3, 2), (8, 3, 2), (5, 3, 2), (6, 2, 2), (13, 2, 2)]
    _, model = torchaudio_model(aux_num_out=None, extractor_conv_layer_config=layers)
    source = ragged([4_000])
    with torch.no_grad():
        expected = model.extract_features(source)[0]
    got = load_teacher(saved(tmp_path, dphubert_state(layers)))(source, [4_000]).hidden_states[1:]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_dphuberts_wavlm(tmp_path):
    """With one projection each for query, key and value, as HuggingFace's has."""
    original = tiny_teachers.huggingface(tmp_path / "hf", "wavlm", normalize=False)
    from safetensors.torch import load_file

    weights = {}
    for key, value in load_file(original.path / "model.safetensors").items():
        for theirs, torchaudios in layout.PARENTS:
            if key.startswith(theirs):
                key = torchaudios + key.removeprefix(theirs)
                break
        weights[key] = value
    del weights["masked_spec_embed"]
    config = dphubert_state()["config"]
    heads = {"encoder_total_num_heads": [2, 2], "encoder_num_buckets": 32, "encoder_max_distance": 64}
    config = {key: value for key, value in config.items() if key not in ("encoder_num_heads", "encoder_head_dim")}
    config |= {**heads, "encoder_remaining_heads": [[0, 1], [0, 1]], "encoder_embed_dim": 24}
    config |= {"encoder_pos_conv_kernel": 16, "encoder_pos_conv_groups": 4}
    config["extractor_conv_layer_config"] = [(16, kernel, stride) for _, kernel, stride in NARROW]
    path = saved(tmp_path, {"state_dict": weights, "config": config})
    assert load_teacher(path).family == "WavLM (DPHuBERT)"
    same_states(path, str(original.path))

    config["encoder_remaining_heads"] = [[1], [1]]
    named(saved(tmp_path, {"state_dict": weights, "config": config}), "sizes (.*1 of 2 attention heads)")
    config["encoder_remaining_heads"] = [[0, 1], [1]]
    named(saved(tmp_path, {"state_dict": weights, "config": config}), "1 to 2 attention heads")


@pytest.mark.parametrize(
    ("heads", "units"), [([4, 2], [48, 48]), ([2, 2], [48, 48]), ([4, 4], [48, 7]), ([1, 6], [9, 64])]
)
def test_layers_that_pruning_left_of_different_sizes(heads, units, tmp_path):
    sizes = {"encoder_num_heads": heads, "encoder_ff_interm_features": units}
    state = dphubert_state(**sizes)
    arguments, _ = torchaudio_model(aux_num_out=None, extractor_conv_layer_config=NARROW)
    weights = dict(state["state_dict"])
    for key, value in weights.items():
        found = re.search(r"layers\.(\d+)\.(attention|feed_forward)\.(\w+)\.(\w+)$", key)
        if found:
            inner = 8 * heads[int(found[1])] if found[2] == "attention" else units[int(found[1])]
            narrow = found[3] in ("out_proj", "output_dense")  # which reads what differs
            shape = list(value.shape)
            if not narrow:
                shape[0] = inner
            elif found[4] == "weight":
                shape[1] = inner
            weights[key] = torch.randn(shape, generator=torch.Generator().manual_seed(len(key))) / 8
    saved_arguments = {**arguments, **sizes, "encoder_head_dim": 8}
    model = layout.build_model({"arguments": saved_arguments, "state_dict": weights})
    source = ragged([4_000])
    with torch.no_grad():
        expected = model.extract_features(source)[0]
    teacher = load_teacher(saved(tmp_path, {**state, "state_dict": weights}))
    assert (teacher.config.layer_heads, teacher.config.layer_ffn_dims) == (tuple(heads), tuple(units))
    torch.testing.assert_close(teacher(source, [4_000]).hidden_states[1:], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_use_attention": [True, False]}, "attention in 1 of them"),
        ({"encoder_use_feed_forward": [False, False]}, "no feed-forward parts"),
    ],
)
def test_layers_that_pruning_took_a_part_of_are_named(changes, message, tmp_path):
    path = saved(tmp_path, dphubert_state(**changes))
    named(path, rf"a model of DPHuBERT's that pruning left layers of their own sizes \({message}\)")


def test_dphuberts_layout_without_its_arguments_is_a_state_dict(tmp_path, monkeypatch):
    path = saved(tmp_path, {**dphubert_state(None), "config": {}})
    named(path, "torchaudio's weights alone")
    monkeypatch.setitem(layout.PUBLISHED, (32, 2), (4, 48))
    assert load_teacher(path).num_heads == 4


@QUICK
@given(key=st.sampled_from(sorted(dphubert_state()["config"])), value=JSON_VALUES, per_layer=st.booleans())
def test_any_value_in_dphuberts_config(key, value, per_layer, tmp_path):
    value = [value, value] if per_layer else value
    loads_or_is_refused(Path(saved(tmp_path, dphubert_state(**{key: value}))))


# Named alone.


def test_a_lightning_checkpoint_as_a_teacher(student, tmp_path):
    """The authors' releases hold an object of s3prl's: they are no file to get from their authors again."""
    path = str(convert_cases.write_release(tmp_path, student))
    message = "is a Lightning checkpoint; import its student with fairseq-star import .*released.ckpt' --config YAML"
    spaced = tmp_path / "with space" / "released.ckpt"
    spaced.parent.mkdir()
    spaced.write_bytes(Path(path).read_bytes())
    for file, said in [(path, message.replace("'", "")), (str(spaced), message)]:
        with pytest.raises(StarError, match=said):
            load_teacher(file)


def test_layouts_that_are_known_by_name(tmp_path, monkeypatch):
    weights = dphubert_state()["state_dict"]
    training = {"state_dict": {f"student_model.{key}": value for key, value in weights.items()}, "epoch": 3}
    named(saved(tmp_path, training), "a checkpoint of DPHuBERT's training; give what its save_final_ckpt.py")
    folder_weights = {"hubert.feature_projection.projection.weight": torch.ones(1), "lm_head.weight": torch.ones(1)}
    named(saved(tmp_path, folder_weights), "the weights of a HuggingFace folder alone; give the folder")
    named(
        saved(tmp_path, {"epoch": 3, "optimizer": {}}), r"no fairseq speech checkpoint: .* \(it holds 'epoch', 'optim"
    )
    named(saved(tmp_path, {}), "it holds nothing")
    wavlm = tiny_teachers.microsoft_wavlm(tmp_path / "wavlm.pt")
    with pytest.raises(StarError, match=r"relative positions \(WavLM\) is no student"):
        read_student(str(wavlm.path))
    named(str(tmp_path / "away" / RELEASE), "is not there")
