"""Students whose layers differ in heads and feed-forward units: their sizes, a step of training, and where they go."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fairseq_star.deploy.targets import load_target
from fairseq_star.encoder.config import HUBERT_BASE
from fairseq_star.encoder.macs import encoder_macs, macs_of_sizes
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.errors import StarError
from fairseq_star.formats import export, import_student, load_student, load_teacher
from fairseq_star.models.starhubert import StarHubertConfig, StarHubertModel
from fairseq_star.slicing.shapes import check_fits, count_parameters, student_shape
from tests.support import convert_cases, tiny
from tests.support.steps import batch_of, build, gradient

UNEQUAL = {"layer_attention_heads": [3, 1, 2], "layer_ffn_embed_dims": [32, 8, 24], "head_dim": 8}
ONE_KIND = {"units": {"layer_ffn_embed_dims": [32, 8, 24]}, "head_dim": {"head_dim": 4}, "both": UNEQUAL}


@pytest.fixture(scope="module", params=list(ONE_KIND))
def student(request, tmp_path_factory):
    return convert_cases.tiny_student(tmp_path_factory.mktemp(request.param), **ONE_KIND[request.param])


def test_shapes_are_those_of_each_layer():
    model = StarHubertModel(StarHubertConfig(**tiny.STUDENT, **UNEQUAL, padded_group_norm=False))
    width = model.config.embed_dim
    for layer, heads, units in zip(model.encoder.layers, [3, 1, 2], [32, 8, 24], strict=True):
        assert layer.self_attn.q_proj.weight.shape == (8 * heads, width)
        assert layer.self_attn.out_proj.weight.shape == (width, 8 * heads)
        assert layer.fc1.weight.shape == (units, width)
    maps = model.eval()(tiny.ragged([6000]), attention_layers=[1, 2, 3]).attention_maps
    assert all(torch.allclose(one.sum(-1), torch.ones(one.shape[:2])) for one in maps.values())


def test_the_same_size_in_all_layers_is_one_number_and_the_same_model():
    torch.manual_seed(0)
    plain = StarHubertModel(StarHubertConfig(**tiny.STUDENT, padded_group_norm=False))
    heads, width = tiny.STUDENT["encoder_attention_heads"], tiny.STUDENT["encoder_embed_dim"]
    torch.manual_seed(0)
    by_layer = StarHubertModel(
        StarHubertConfig(**tiny.STUDENT, layer_attention_heads=[heads] * 3, head_dim=width // heads,
                         layer_ffn_embed_dims=[tiny.STUDENT["encoder_ffn_embed_dim"]] * 3, padded_group_norm=False)
    )  # fmt: skip
    assert by_layer.config == plain.config
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), by_layer.parameters(), strict=True))


@pytest.mark.parametrize("sizes", [
    {"num_heads": (12, 7), "head_dim": 64}, {"ffn_embed_dim": (3072, 100)}, {"num_heads": 5, "head_dim": 40},
])  # fmt: skip
def test_parameters_and_multiply_accumulates_are_those_of_the_encoder(sizes):
    config, lengths = replace(HUBERT_BASE, num_layers=2, **sizes), [400, 16_000, 163_217]
    model = SpeechEncoder(config).to("meta")
    assert count_parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    assert encoder_macs(config, lengths) == macs_of_sizes(config, np.array(lengths)).tolist()


def test_a_step_of_training_reaches_every_weight(corpus, teacher_path):
    task, model, criterion = build(corpus, teacher_path, model=UNEQUAL)
    loss, flat = gradient(model, criterion, batch_of(task, range(3)))
    assert np.isfinite(loss)
    assert flat.isfinite().all()
    missing = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()]
    assert missing == []


@pytest.mark.parametrize("name", ["torchaudio", "torchscript", "onnx", "pt2"])
def test_files_that_hold_it(student, name, tmp_path):
    exported = export(student, load_target(name)(), tmp_path / "exported")
    assert max(exported.alone, exported.batched) < 5e-5


def test_it_teaches_and_comes_back_from_torchaudio(student, tmp_path):
    assert load_teacher(student.origin).config == student.config
    export(student, load_target("torchaudio")(), tmp_path / "student.torchaudio.pt")
    import_student(str(tmp_path / "student.torchaudio.pt"), str(tmp_path / "student.pt"))
    assert convert_cases.equal(load_student(str(tmp_path / "student.pt")), student)


@pytest.mark.parametrize("name", ["fairseq", "s3prl", "huggingface"])
def test_formats_of_layers_alike_say_so_by_option(student, name, tmp_path):
    with pytest.raises(StarError, match=r"its layers are alike.*this student has model\.(layer_|head_dim).*hold it$"):
        export(student, load_target(name)(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_it_can_be_neither_sliced_nor_sliced_from(student):
    for teacher, own in ((HUBERT_BASE, student.config), (student.config, HUBERT_BASE)):
        with pytest.raises(StarError, match=r"model\.init=sliced: its layers are alike"):
            check_fits(teacher, own)
    with pytest.raises(StarError, match=r"model\.target_params and model\.target_macs: its layers are alike"):
        student_shape(student.config, target_params=1e3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_attention_heads": [1, 2], "head_dim": 8}, r"heads=\[1, 2\] must be 3 numbers from 1 on"),
        ({"layer_ffn_embed_dims": [1, 2, 0]}, r"layer_ffn_embed_dims=\[1, 2, 0\] must be 3 numbers from 1 on"),
        ({"layer_attention_heads": [1, 2, 3]}, r"layer_attention_heads needs model\.head_dim"),
        ({"head_dim": 0}, r"model\.head_dim=0 must be 1 or more"),
        ({"head_dim": 4, "chunk_frames": [4], "extractor_mode": "running_norm"}, r"cannot be of a student of model"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused_by_option(settings, message):
    with pytest.raises(StarError, match=message):
        StarHubertModel(StarHubertConfig(**tiny.STUDENT, **settings, padded_group_norm=False))
