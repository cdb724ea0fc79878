"""Teachers damaged at random (property-based): whatever happens to a file or a config, one sentence tells it."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairseq_star.errors import StarError
from fairseq_star.formats import load_teacher
from fairseq_star.formats.config import Section, encoder_config
from tests.support.teacher_files import JSON_VALUES, WEIGHTS, hf_config, hf_folder, loads_or_is_refused, refused

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@QUICK
@given(data=st.data())
def test_damaged_checkpoints(data, tmp_path, teacher_path):
    """Cut anywhere, or with bytes exchanged anywhere: loaded (a weight's bytes) or refused in one line."""
    content = bytearray(teacher_path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:  # mostly where the structure lies, not among the weights
        where = st.one_of(st.integers(0, 4000), st.integers(len(content) - 4000, len(content) - 1))
        for position, byte in data.draw(st.lists(st.tuples(where, st.integers(0, 255)), min_size=1, max_size=8)):
            content[position] = byte
    path = tmp_path / "t.pt"
    path.write_bytes(content)
    loads_or_is_refused(path)


@QUICK
@given(cut=st.integers(0, 2**20))
def test_a_checkpoint_cut_short_is_called_truncated(cut, tmp_path, teacher_path):
    content = teacher_path.read_bytes()
    path = tmp_path / "t.pt"
    path.write_bytes(content[: 2 + cut % (len(content) - 2)])
    refused(path, "is truncated or damaged")


@QUICK
@given(key=st.sampled_from(sorted(hf_config())), value=JSON_VALUES)
def test_any_value_in_a_huggingface_config(key, value, tmp_path_factory, good_state):
    folder = tmp_path_factory.mktemp("any") / "hf"
    hf_folder(folder, good_state, **{key: value})
    loads_or_is_refused(folder)


@QUICK
@given(value=JSON_VALUES, key=st.sampled_from(["encoder_layers", "conv_feature_layers", "extractor_mode", "conv_bias",
       "encoder_embed_dim", "conv_pos_groups", "pos_conv_depth", "layer_type"]))  # fmt: skip
def test_any_value_in_a_fairseq_config(key, value):
    try:
        config, told = encoder_config(Section({key: value}, "t.pt")), ""
    except StarError as error:
        config, told = None, str(error)
    assert told.startswith("t.pt: ") if config is None else 1 <= config.num_layers <= 256
    assert "\n" not in told


@QUICK
@given(data=st.data())
def test_damaged_safetensors(data, tmp_path, good_state):
    save_file = pytest.importorskip("safetensors.torch").save_file
    folder = tmp_path / "hf"
    if not folder.exists():
        hf_folder(folder, good_state)
        save_file(torch.load(folder / WEIGHTS, weights_only=True), folder / "whole")
        (folder / WEIGHTS).unlink()
    content = bytearray((folder / "whole").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
        message = "is truncated|is an empty file|no safetensors file|is damaged"
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(StarError, match=message) as error:
            load_teacher(str(folder))
        assert "\n" not in str(error.value)
        return
    for position, byte in data.draw(
        st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=8)
    ):
        content[position] = byte
    (folder / "model.safetensors").write_bytes(content)
    loads_or_is_refused(folder)
