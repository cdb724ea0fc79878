"""Teachers' files written by hand, and how loading one is refused."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st

from fairseq_star.errors import StarError
from fairseq_star.formats import load_teacher
from fairseq_star.formats.hf_keys import table, to_huggingface

WEIGHTS, CONFIG = "pytorch_model.bin", "config.json"
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def hf_config(**overrides) -> dict:
    """``config.json`` of a HuBERT with the sizes of ``tiny.hubert_state``."""
    config = {
        "model_type": "hubert",
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "conv_dim": [16] * 7,
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "layer_norm_eps": 1e-5,
    }
    return {**config, **overrides}


def hf_folder(folder: Path, state: dict, **overrides) -> Path:
    """A whole HuggingFace folder, readable without safetensors."""
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(hf_config(**overrides)))
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false, "sampling_rate": 16000}')
    pairs = table(layer_norm_extractor=False, positional_stack=False, wavlm=False)
    named = {to_huggingface(key, pairs): value for key, value in state["model"].items()}
    torch.save({key: value for key, value in named.items() if key}, folder / WEIGHTS)
    return folder


def refusal(path: Path) -> str | None:
    """The sentence that refuses ``path``; None where it loads."""
    try:
        load_teacher(str(path))
    except StarError as error:
        return str(error)
    return None


def refused(path: Path, message: str) -> None:
    """Loading ``path`` ends in one line that names it and contains ``message``."""
    with pytest.raises(StarError, match=message) as error:
        load_teacher(str(path))
    told = str(error.value)
    assert told.startswith(f"task.teacher: {path}")
    assert "\n" not in told
    assert len(told.replace(str(path), "")) < 500


def loads_or_is_refused(path: Path) -> None:
    told = refusal(path)
    assert told is None or (str(path) in told and "\n" not in told)
