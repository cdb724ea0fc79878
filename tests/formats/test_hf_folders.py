"""HuggingFace folders as transformers writes and reads them: audio format, defaults, heads beside an encoder."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairseq_star.errors import StarError
from fairseq_star.formats import huggingface, load_teacher, teacher_files
from fairseq_star.formats import huggingface as convert
from fairseq_star.formats.config import Section
from fairseq_star.formats.hf_folder import audio_format
from fairseq_star.formats.hf_keys import table
from tests.support import tiny, tiny_teachers
from tests.support.teacher_files import hf_folder
from tests.support.tiny import ragged

transformers = pytest.importorskip("transformers", minversion="5")

QUICK = settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
CLASSES = {"hubert": "Hubert", "wav2vec2": "Wav2Vec2", "wavlm": "WavLM", "data2vec-audio": "Data2VecAudio"}


def written(folder: Path, **files: object) -> str:
    """``folder`` with these JSON files and no others; None is no file."""
    for name in ("config", "processor_config", "preprocessor_config"):
        (folder / f"{name}.json").unlink(missing_ok=True)
        if files.get(name) is not None:
            (folder / f"{name}.json").write_text(json.dumps(files[name]))
    return str(folder)


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "do_normalize": st.booleans(),
        "sampling_rate": st.sampled_from([8_000, 16_000, 44_100]),
        "feature_extractor_type": st.just("Wav2Vec2FeatureExtractor"),
    },
)
PROCESSORS = st.fixed_dictionaries(
    {"processor_class": st.just("Wav2Vec2Processor")},
    optional={"feature_extractor": st.none() | SETTINGS, "audio_processor": SETTINGS},
)


@QUICK
@given(processor=st.none() | PROCESSORS, preprocessor=st.none() | SETTINGS, model_type=st.sampled_from(list(CLASSES)))
def test_the_audio_format_is_what_transformers_reads(processor, preprocessor, model_type, tmp_path):
    """Nested, in a file of its own, in both, in neither; with what it leaves out."""
    folder = written(
        tmp_path, config={"model_type": model_type}, processor_config=processor, preprocessor_config=preprocessor
    )
    try:
        read = transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except OSError:
        assert audio_format(folder, "teacher", layer_norm_extractor=True) == (16_000, True)
        assert audio_format(folder, "teacher", layer_norm_extractor=False) == (16_000, False)
    else:
        got = audio_format(folder, "teacher", layer_norm_extractor=model_type == "data2vec-audio")
        assert got == (read.sampling_rate, read.do_normalize)


def test_a_processor_that_transformers_saves(tmp_path, caplog):
    path = tiny_teachers.huggingface(tmp_path / "hf", "hubert", **tiny_teachers.HF_LARGE).path
    (path / "preprocessor_config.json").unlink()
    (tmp_path / "vocab.json").write_text('{"a": 0, "<pad>": 1, "<unk>": 2, "|": 3}')
    transformers.Wav2Vec2Processor(
        transformers.Wav2Vec2FeatureExtractor(do_normalize=False, sampling_rate=8_000),
        transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), pad_token="<pad>", unk_token="<unk>"),
    ).save_pretrained(path)
    assert not (path / "preprocessor_config.json").exists()  # or it would not be transformers 5
    teacher = load_teacher(str(path))
    assert (teacher.normalize, teacher.sample_rate) == (False, 8_000)
    assert "processor_config" not in caplog.text
    assert "processor_config.json" in [Path(file).name for file in teacher_files(str(path))]


# Values other than the defaults, of all that an encoder is built from.
VALUES = {
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-3,
    "feat_extract_norm": "layer",
    "feat_extract_activation": "gelu",
    "conv_dim": [16, 24, 32, 16, 8, 16, 16],
    "conv_kernel": [10, 4, 4, 4, 4, 3, 3],
    "conv_stride": [4, 2, 2, 2, 2, 2, 2],
    "conv_bias": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 8,
    "do_stable_layer_norm": True,
    "hidden_dropout": 0.2,
    "attention_dropout": 0.3,
    "activation_dropout": 0.4,
    "feat_proj_dropout": 0.25,
}
OWN_VALUES = {
    "hubert": {"feat_proj_layer_norm": False},
    "wav2vec2": {},
    "wavlm": {"num_buckets": 48, "max_bucket_distance": 128},
    "data2vec-audio": {"conv_pos_kernel_size": 11},
}


@QUICK
@given(data=st.data(), model_type=st.sampled_from(list(CLASSES)))
def test_what_a_config_leaves_out_is_what_transformers_takes(data, model_type, tmp_path):
    """Whatever is left out: transformers, which reads the same file, fills it with the same."""
    values = {**VALUES, **OWN_VALUES[model_type]}
    said = {key: values[key] for key in data.draw(st.sets(st.sampled_from(sorted(values))))}
    folder = written(tmp_path, config={"model_type": model_type, **said})
    filled = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    assert filled.keys() >= values.keys() - {"feat_extract_norm", "do_stable_layer_norm"}  # data2vec has neither
    short, whole = Section(said, "teacher"), Section(filled, "teacher")
    assert huggingface._encoder_config(short, model_type) == huggingface._encoder_config(whole, model_type)
    assert convert.dropouts(short) == convert.dropouts(whole)


def test_a_config_of_a_model_type_and_little_else(tmp_path):
    """As it stands on the hub: the convolutions' shapes, and more, are the library's."""
    model = transformers.HubertModel(transformers.HubertConfig(num_hidden_layers=1, intermediate_size=64))
    model.save_pretrained(tmp_path)
    written(tmp_path, config={"model_type": "hubert", "num_hidden_layers": 1, "intermediate_size": 64})
    source = ragged([4000])
    with torch.no_grad():
        expected = transformers.HubertModel.from_pretrained(tmp_path).eval()(source, output_hidden_states=True)
    got = load_teacher(str(tmp_path))(source, [4000])
    torch.testing.assert_close(got.hidden_states[-1], expected.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_a_config_is_never_acted_on(tmp_path):
    """transformers' own config class would make a dictionary of so many labels."""
    folder = hf_folder(tmp_path / "hf", tiny.hubert_state(), num_labels=10**12, auto_map={"AutoConfig": "evil.Config"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert load_teacher(str(folder)).num_layers == 3
    assert not (tmp_path / "ran").exists()


HEADED = sorted(
    (model_type, name)
    for model_type, start in CLASSES.items()
    for name in dir(transformers)
    if re.fullmatch(start + r"For\w+", name) and hasattr(getattr(transformers, name), "from_pretrained")
)


@pytest.mark.parametrize(("model_type", "name"), HEADED)
@pytest.mark.parametrize("prefixed", [True, False])
def test_heads_of_every_model_of_transformers_go(model_type, name, prefixed):
    """Beside the encoder, under the family's prefix or without: the encoder's keys alone are left, all of them."""
    config = getattr(transformers, CLASSES[model_type] + "Config")(
        **tiny_teachers.HF_SIZES, use_weighted_layer_sum=True, tdnn_dim=(8,) * 5, xvector_output_dim=8, num_labels=3
    )
    headed = getattr(transformers, name)(config)
    prefix = headed.base_model_prefix + "."
    weights = headed.state_dict()
    encoder = {key.removeprefix(prefix) for key in weights if key.startswith(prefix)} - {"masked_spec_embed"}
    assert len(weights) > len(encoder) > 20
    if not prefixed:
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    data2vec = model_type == "data2vec-audio"
    pairs = table(layer_norm_extractor=data2vec, positional_stack=data2vec, wavlm=model_type == "wavlm")
    renamed = huggingface._renamed(weights, model_type.replace("-", "_") + ".", pairs, "teacher")
    assert len(renamed) == len(encoder)


def test_there_are_models_with_heads_to_try():
    assert len({name for _, name in HEADED}) >= 14


class HubertModelWithFinalProj(transformers.HubertModel):
    """contentvec's: a head beside the encoder, which has no prefix."""

    def __init__(self, config):
        super().__init__(config)
        self.final_proj = torch.nn.Linear(config.hidden_size, config.classifier_proj_size)


@pytest.fixture(scope="module")
def contentvec(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("contentvec")
    model = HubertModelWithFinalProj(transformers.HubertConfig(**tiny_teachers.HF_SIZES))
    tiny_teachers.randomize(model).save_pretrained(folder)
    return folder


def test_contentvec(contentvec, caplog):
    caplog.set_level("INFO")
    source = ragged([4000])
    with torch.no_grad():
        expected = transformers.HubertModel.from_pretrained(contentvec).eval()(source).last_hidden_state
    got = load_teacher(str(contentvec))(source, [4000]).hidden_states[-1]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert "its heads are not used ('final_proj')" in caplog.text


PAIRS = table(layer_norm_extractor=False)
KEYS = [left.format(n=1, p="weight") for left, _ in PAIRS]
WORDS = st.from_regex(r"[a-z_]{1,12}(\.[a-z0-9_]{1,8}){0,3}", fullmatch=True)


@QUICK
@given(word=WORDS, module=st.sampled_from(huggingface.ENCODER), prefixed=st.booleans())
def test_an_unknown_key_that_may_be_the_encoders_is_an_error(word, module, prefixed):
    """Of a module of the encoder, with its prefix or not; or of any name, where no prefix tells encoder and heads."""
    prefix = "hubert." if prefixed else ""
    weights = {prefix + key: torch.zeros(1) for key in KEYS}
    unknown = {f"{module}{word}", f"{prefix}{module}{word}", f"{prefix}mask_{word}"}
    for key in unknown - weights.keys() - set(huggingface.XVECTOR_HEAD):
        with pytest.raises(StarError, match=re.escape(f"{key[:80]!a} is unknown")):
            huggingface._renamed({**weights, key: torch.zeros(1)}, "hubert.", PAIRS, "teacher")


@QUICK
@given(key=st.sampled_from(KEYS))
def test_an_encoder_that_comes_with_its_prefix_and_without(key):
    """One of the two would be lost."""
    weights = {f"hubert.{name}": torch.zeros(1) for name in KEYS} | {key: torch.ones(1)}
    with pytest.raises(StarError, match=f"'{re.escape(key)}' comes twice"):
        huggingface._renamed(weights, "hubert.", PAIRS, "teacher")
