"""Fine-tuned students are read with their heads: the same log-probabilities as fairseq's own, the same texts."""

import pytest
import torch
from fairseq.data.data_utils import post_process
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_star.errors import StarError
from fairseq_star.formats import load_tuned
from fairseq_star.formats.ctc import Tokens, read_head
from fairseq_star.formats.finetuned import read_labels
from fairseq_star.formats.target import target_outputs
from tests.support import convert_cases, tuned


@pytest.fixture(scope="module", params=list(tuned.KINDS))
def kind(request):
    return request.param


def tokens_of(kind: str) -> Tokens:
    """The tokens of a checkpoint that does not say of which kind they are."""
    labels = tuned.dictionary(tuned.KINDS[kind])
    shapes = {"weight": (len(labels), 3), "bias": (len(labels),)}
    weights = {f"w2v_encoder.proj.{key}": torch.zeros(shape) for key, shape in shapes.items()}
    state = {"model": weights, "cfg": {}, "task_state": {"target_dictionary": labels}}
    return read_head(state, None, name="tuned.pt").tokens


@given(best=st.lists(st.sampled_from([0, 2, 4, 5, 6, 7]), max_size=30))
def test_texts_are_fairseqs(kind, best):
    labels, tokens = tuned.dictionary(tuned.KINDS[kind]), tokens_of(kind)
    # fairseq/criterions/ctc.py
    units = torch.tensor(best, dtype=torch.long).unique_consecutive()
    expected = post_process(labels.string(units[units != 0]), kind)
    assert tokens.text(best) == " ".join(expected.split())
    assert tokens.post_process == kind  # found by the tokens alone


def test_token_files_are_lines_of_a_token_and_its_number(kind):
    tokens = tokens_of(kind)
    pairs = [line.split(" ") for line in tokens.lines().splitlines()]
    assert [int(number) for _, number in pairs] == list(range(len(tokens.symbols)))
    read = [token for token, _ in pairs]
    assert (read[0], read[1:4]) == ("<blk>", ["<pad>", "</s>", "<unk>"][:3] if kind != "none" else read[1:4])
    assert "".join(read[4:7]).replace("▁", " ").split() == tokens.text([4, 0, 5, 0, 6]).split()


@pytest.mark.parametrize("case", [None, "projection", "pre_norm"])
def test_the_head_on_the_encoder_is_fairseqs_forward_pass(case, tmp_path):
    student = load_tuned(tuned.write(tmp_path, case=case), "export")
    sources = tuned.noise([16_000, 400, 7_777])
    reference, student.reference = student.reference(sources), None
    for ours, theirs in zip(target_outputs(student, sources), reference, strict=True):
        assert ours[0].shape == theirs[0].shape
        assert (ours[0] - theirs[0]).abs().max() < 1e-5
        assert (ours[0].exp().sum(-1) - 1).abs().max() < 1e-5


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(400, 6_000), min_size=1, max_size=4))
def test_a_batch_splits_into_its_utterances(tmp_path_factory, lengths):
    student = load_tuned(tuned.write(tmp_path_factory.mktemp("tuned")), "export")
    frame_lengths = torch.tensor([student.model.geometry.num_frames(length) for length in lengths])
    states = [torch.randn(len(lengths), int(frame_lengths.max()), student.config.embed_dim)]
    split = student.head.split(student.head(states, frame_lengths), frame_lengths)
    assert [len(log_probs) for [log_probs] in split] == frame_lengths.tolist()
    again = read_labels(student.head.metadata(["a"], sample_rate=8, downsample_rate=2)["fairseq_star.head"], "file")
    assert (again.labels, again.inputs, again.sample_rate, again.downsample_rate) == (student.head.tokens, ("a",), 8, 2)
    assert student.head.text(split[0]) == again.labels.greedy(split[0][0])


def test_the_dictionary_comes_from_the_file_the_checkpoint_or_its_data_folder(tmp_path):
    state = tuned.state(tmp_path)
    labels = state["task_state"].pop("target_dictionary")
    torch.save(state, tmp_path / "tuned.pt")
    file = tmp_path / "dict.ltr.txt"
    with pytest.raises(StarError, match=rf"^export: .*tuned\.pt holds no dictionary .* no {file}; give one as --dict"):
        load_tuned(tmp_path / "tuned.pt", "export")
    labels.save(str(file))
    expected = load_tuned(tmp_path / "tuned.pt", "export").head.tokens
    assert expected.symbols[4:] == tuple(tuned.LETTERS)
    file.rename(tmp_path / "other.txt")
    assert load_tuned(tmp_path / "tuned.pt", "export", str(tmp_path / "other.txt")).head.tokens == expected
    torch.save({**state, "task_state": {"dictionaries": [labels]}}, tmp_path / "older.pt")  # of hubert_pretraining
    assert load_tuned(tmp_path / "older.pt", "export").head.tokens == expected
    smaller = tmp_path / "smaller.txt"
    smaller.write_text("| 3\nE 2\n")
    with pytest.raises(StarError, match="its head has 10 tokens and its dictionary 6; give the dictionary that it"):
        load_tuned(tmp_path / "tuned.pt", "export", str(smaller))
    for content, fault in (
        (b"|\n", "does not hold fairseq's lines"),
        (b"\xff\xfe 1\n", "does not hold"),
        (None, "cannot be"),
    ):
        wrong = tmp_path / "wrong.txt"
        wrong.unlink(missing_ok=True)
        if content is not None:
            wrong.write_bytes(content)
        with pytest.raises(StarError, match=rf"^--dictionary .*wrong\.txt {fault}"):
            load_tuned(tmp_path / "tuned.pt", "export", str(wrong))


def test_what_is_no_head_of_a_known_kind_is_one_sentence(tmp_path):
    state = tuned.state(tmp_path)

    def refused(fault: str, **changed):
        torch.save({**state, **changed}, tmp_path / "changed.pt")
        with pytest.raises(StarError, match=fault):
            load_tuned(tmp_path / "changed.pt", "export")

    weights = state["model"]
    headless = {key: value for key, value in weights.items() if ".proj." not in key}
    refused("are no linear layer to tokens", model=headless)
    refused("are no linear layer to tokens", model={**weights, "w2v_encoder.proj.bias": torch.zeros(3)})
    refused("'decoder.weight' is unknown", model={**weights, "decoder.weight": torch.zeros(3)})
    criterion = {"_name": "ctc", "post_process": "_EOW"}
    refused("post_process=_EOW; exports know letter", cfg={**state["cfg"], "criterion": criterion})
    spaced = tuned.dictionary([*tuned.LETTERS[:-1], "A B"])
    refused("contains the token 'A B', which has a space", task_state={"target_dictionary": spaced})
    with pytest.raises(StarError, match="--dictionary is for fine-tuned checkpoints"):
        load_tuned(convert_cases.write_checkpoint(tmp_path / "student.pt"), "export", "dict.txt")
    for told, fault in (
        (None, "an exported encoder without a head"),
        ("{}", "as this version does not"),
        ("?", "as this"),
    ):
        with pytest.raises(StarError, match=fault):
            read_labels(told, "export: model.onnx")
