"""Teachers of every family: their own library's features, whatever the batch, and students that learn from them."""

import dataclasses
import resource
import sys
from pathlib import Path

import pytest
import torch

from fairseq_star import cli
from fairseq_star.encoder.frames import Frames
from fairseq_star.errors import StarError
from fairseq_star.formats import hf_keys, load_teacher, teacher_files
from fairseq_star.formats.student import ARCHITECTURES
from fairseq_star.models import starhubert
from tests.support import tiny, tiny_teachers
from tests.support.steps import batch_of, build
from tests.support.tiny import ragged

# transformers itself hands torch masks of two types.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")

LARGE, HF_LARGE = tiny_teachers.FAIRSEQ_LARGE, tiny_teachers.HF_LARGE
# name -> (what makes it, family, normalize)
CASES = {
    "hubert": (tiny_teachers.hubert, {}, "HuBERT (fairseq)", False),
    "hubert large": (tiny_teachers.hubert, {"normalize": True, **LARGE}, "HuBERT (fairseq)", True),
    "hubert args": (tiny_teachers.hubert, {"old": True}, "HuBERT (fairseq)", False),
    "wav2vec2": (tiny_teachers.wav2vec2, {}, "wav2vec 2.0 (fairseq)", False),
    "wav2vec2 large": (tiny_teachers.wav2vec2, {"normalize": True, **LARGE}, "wav2vec 2.0 (fairseq)", True),
    "wav2vec2 args": (tiny_teachers.wav2vec2, {"normalize": True, "old": True}, "wav2vec 2.0 (fairseq)", True),
    "hubert_ctc": (tiny_teachers.fine_tuned, {"kind": "hubert", **LARGE}, "fine-tuned HuBERT (fairseq)", True),
    "wav2vec_ctc": (tiny_teachers.fine_tuned, {"kind": "wav2vec2"}, "fine-tuned wav2vec 2.0 (fairseq)", True),
    "wav2vec_ctc args": (
        tiny_teachers.fine_tuned, {"kind": "wav2vec2", "old": True}, "fine-tuned wav2vec 2.0 (fairseq)", True,
    ),
    "wavlm": (tiny_teachers.microsoft_wavlm, {}, "WavLM (Microsoft)", False),
    "wavlm large": (tiny_teachers.microsoft_wavlm, {"normalize": True, "large": True}, "WavLM (Microsoft)", True),
    "hf hubert": (tiny_teachers.huggingface, {"kind": "hubert"}, "HuBERT (HuggingFace)", True),
    "hf hubert large": (tiny_teachers.huggingface, {"kind": "hubert", **HF_LARGE}, "HuBERT (HuggingFace)", True),
    "hf wav2vec2": (tiny_teachers.huggingface, {"kind": "wav2vec2"}, "wav2vec 2.0 (HuggingFace)", True),
    "hf wav2vec2 large": (
        tiny_teachers.huggingface, {"kind": "wav2vec2", **HF_LARGE}, "wav2vec 2.0 (HuggingFace)", True,
    ),
    "hf wavlm": (
        tiny_teachers.huggingface, {"kind": "wavlm", "normalize": False, "layer_norm_eps": 1e-3},
        "WavLM (HuggingFace)", False,
    ),
    "hf wavlm large": (tiny_teachers.huggingface, {"kind": "wavlm", **HF_LARGE}, "WavLM (HuggingFace)", True),
    "hf data2vec": (tiny_teachers.huggingface, {"kind": "data2vec"}, "data2vec-audio (HuggingFace)", True),
    "hf hubert without norm": (
        tiny_teachers.huggingface, {"kind": "hubert", "feat_proj_layer_norm": False}, "HuBERT (HuggingFace)", True,
    ),
}  # fmt: skip
DEPENDENT = [name for name in CASES if "large" not in name and name != "hubert_ctc"]  # on the batch, in their libraries
SAMPLES = [6000, 3990]  # fairseq's two ways to make a frame mask agree on these


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """Make one of CASES, once; its file's name tells nothing true."""
    made = {}

    def make(name: str) -> tiny_teachers.Original:
        if name not in made:
            if "hf" in name or "wavlm" in name:
                pytest.importorskip("transformers", reason="the original implementation is transformers'")
            function, options, _, _ = CASES[name]
            made[name] = function(tmp_path_factory.mktemp("teacher") / "wavlm_hubert_wav2vec2.bin", **options)
        return made[name]

    return make


def assert_close(states, expected, mask=None):
    assert len(states) == len(expected)
    for got, wanted in zip(states, expected, strict=True):
        if mask is not None:
            got, wanted = got[~mask], wanted[~mask]
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_every_layer_is_that_of_the_original(name, original):
    source = ragged([6000, 6000])
    encoding = load_teacher(str(original(name).path))(source, [6000, 6000])
    assert encoding.frames.padding_mask is None
    assert_close(encoding.hidden_states, original(name).hidden_states(source))


@pytest.mark.parametrize("name", CASES)
def test_every_layer_of_a_padded_batch_is_that_of_the_original(name, original):
    """With the option that restores the library's own dependence on the batch, where it has one."""
    source, padding_mask = ragged(SAMPLES), torch.arange(6000) >= torch.tensor(SAMPLES)[:, None]
    encoding = load_teacher(str(original(name).path), valid_group_norm=False)(source, SAMPLES)
    assert encoding.frames.padding_mask.sum() > 0
    expected = original(name).hidden_states(source, padding_mask)
    assert_close(encoding.hidden_states, expected, encoding.frames.padding_mask)


@pytest.mark.parametrize("name", CASES)
def test_valid_frames_of_a_padded_batch_are_the_originals_of_the_utterance_alone(name, original):
    """On ragged lengths where fairseq's frame masks differ from the convolutions' too."""
    samples = [5119, 7321, 400]
    source = ragged(samples, total=9000)
    encoding, library = (
        load_teacher(str(original(name).path), valid_group_norm=valid)(source, samples) for valid in (True, False)
    )
    dependence = 0.0
    for utterance, num_samples in enumerate(samples):
        frames = encoding.frames.frame_lengths[utterance]
        alone = original(name).hidden_states(source[utterance : utterance + 1, :num_samples])
        assert alone[0].size(1) - frames in (0, frames % 2)  # fairseq adds a padded frame to odd numbers of them
        alone = [state[:, :frames] for state in alone]
        assert_close([state[utterance, :frames] for state in encoding.hidden_states], [state[0] for state in alone])
        difference = library.hidden_states[-1][utterance, :frames] - alone[-1][0]
        dependence = max(dependence, difference.abs().max().item())
    assert (dependence > 1e-2) == (name in DEPENDENT)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("hf") and "without" not in name])
def test_attention_maps_are_those_of_the_original(name, original):
    source, padding_mask = ragged(SAMPLES), torch.arange(6000) >= torch.tensor(SAMPLES)[:, None]
    encoding = load_teacher(str(original(name).path), valid_group_norm=False)(source, SAMPLES, attention_layers=[1, 2])
    with torch.no_grad():
        attentions = original(name).run(source, padding_mask).attentions
    mask = encoding.frames.padding_mask
    for number, weights in enumerate(attentions, start=1):
        got, expected = encoding.attention_maps[number], weights.mean(dim=1)
        torch.testing.assert_close(got[~mask], expected[~mask], rtol=1e-5, atol=1e-6)
        assert got[1][:, mask[1]].abs().max() == 0


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("hf", "wavlm"))])
def test_attention_maps_are_those_of_fairseq(name, original):
    """fairseq never asks its layers for the weights, so a hook asks each attention for them."""
    source, padding_mask = ragged(SAMPLES), torch.arange(6000) >= torch.tensor(SAMPLES)[:, None]
    encoding = load_teacher(str(original(name).path), valid_group_norm=False)(source, SAMPLES, attention_layers=[1, 2])
    maps, hooks = [], []
    for layer in original(name).layers:
        attention = layer.self_attn
        asks = attention.register_forward_pre_hook(lambda _, x, options: (x, {**options, "need_weights": True}),
                                                   with_kwargs=True)  # fmt: skip
        hooks += [asks, attention.register_forward_hook(lambda _, x, output: maps.append(output[1]))]
    original(name).hidden_states(source, padding_mask)
    for hook in hooks:
        hook.remove()
    assert len(maps) == 2
    mask = encoding.frames.padding_mask
    frames = mask.size(1)  # fairseq adds a padded frame to odd numbers of them
    for number, expected in enumerate(maps, start=1):
        got, expected = encoding.attention_maps[number], expected[:, :frames, :frames]
        torch.testing.assert_close(got[~mask], expected[~mask], rtol=1e-5, atol=1e-6)
        assert got[1][:, mask[1]].abs().max() == 0


@pytest.mark.parametrize("name", CASES)
def test_the_family_is_told_from_the_content(name, original):
    teacher = load_teacher(str(original(name).path))
    _, _, family, normalize = CASES[name]
    assert (teacher.family, teacher.normalize, teacher.sample_rate) == (family, normalize, 16_000)
    assert (teacher.num_layers, teacher.embed_dim, teacher.num_heads) == (2, 24, 2)
    assert (teacher.geometry.receptive_field, teacher.geometry.downsample_rate) == (400, 320)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_student_teaches(architecture, tmp_path):
    model = student(architecture)
    model.load_state_dict(tiny_teachers.randomize(model).state_dict())
    path = tmp_path / "checkpoint_best.pt"
    torch.save(student_state(architecture, model, {"sample_rate": 16_000, "normalize": True}), path)
    teacher = load_teacher(str(path))
    source = ragged(SAMPLES)
    expected = model(source, frames=Frames.of(model.geometry, SAMPLES, source), attention_layers=[2])
    got = teacher(source, SAMPLES, attention_layers=[2])
    assert_close([got.projected_features, *got.hidden_states], [expected.projected_features, *expected.hidden_states])
    torch.testing.assert_close(got.attention_maps[2], expected.attention_maps[2])
    assert (teacher.family, teacher.normalize) == (f"{architecture} (this project)", True)


def student(architecture: str):
    config = ARCHITECTURES[architecture](**{**tiny.STUDENT, "padded_group_norm": False})
    return starhubert.StarHubertModel(config).eval()


def student_state(architecture: str, model, task_state: dict) -> dict:
    saved = {**dataclasses.asdict(model.cfg), "_name": architecture}
    saved |= {name: str(saved[name]) for name in ("extractor_mode", "activation_fn")}
    task = {"_name": "star_distillation", "sample_rate": None, "normalize": None}
    return {"args": None, "cfg": {"model": saved, "task": task}, "model": model.state_dict(), "task_state": task_state}


def sharded(model, path: Path) -> None:
    model.save_pretrained(path, max_shard_size="20KB")
    assert len(list(path.glob("*.safetensors"))) > 1


def pickled(model, path: Path) -> None:
    model.config.save_pretrained(path)
    torch.save(model.state_dict(), path / "pytorch_model.bin")


def of_older_torch(model, path: Path) -> None:
    """With the older names of weight norm's parts, as most folders on the hub have them."""
    model.config.save_pretrained(path)
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = model.state_dict()
    for new, old in names.items():
        key = f"encoder.pos_conv_embed.conv.{new}"
        state[key.replace(new, old)] = state.pop(key)
    torch.save(state, path / "pytorch_model.bin")


@pytest.mark.parametrize("save", [sharded, pickled, of_older_torch])
def test_huggingface_folders_of_all_kinds(save, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "hf").mkdir()
    made = tiny_teachers.huggingface(tmp_path / "hf", "wavlm", save=save)
    source = ragged([6000])
    assert_close(load_teacher(str(made.path))(source, [6000]).hidden_states, made.hidden_states(source))
    files = [Path(file).name for file in teacher_files(str(made.path))]
    assert files[:2] == ["config.json", "preprocessor_config.json"]
    assert sorted(files[2:]) == sorted(
        file.name for file in made.path.iterdir() if file.suffix in {".safetensors", ".bin"}
    )


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2", "wavlm", "data2vec"])
def test_a_fine_tuned_huggingface_model_gives_its_encoder(kind, tmp_path):
    pytest.importorskip("transformers")
    made = tiny_teachers.huggingface(tmp_path / "hf", kind, headed=True)
    source = ragged([6000])
    assert_close(load_teacher(str(made.path))(source, [6000]).hidden_states, made.hidden_states(source))


def test_half_precision_weights_and_a_folder_that_does_not_say_its_audio(tmp_path):
    pytest.importorskip("transformers")
    made = tiny_teachers.huggingface(
        tmp_path / "hf", "hubert", save=lambda model, path: model.half().save_pretrained(path)
    )
    (made.path / "preprocessor_config.json").unlink()
    teacher = load_teacher(str(made.path))
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
    assert (teacher.normalize, teacher.sample_rate) == (False, 16_000)  # a group norm extractor does not care
    large = tiny_teachers.huggingface(tmp_path / "large", "hubert", **HF_LARGE)
    (large.path / "preprocessor_config.json").unlink()
    assert load_teacher(str(large.path)).normalize is True


def test_the_key_table_is_invertible():
    for layer_norm_extractor in (False, True):
        for wavlm in (False, True):
            pairs = hf_keys.table(layer_norm_extractor=layer_norm_extractor, positional_stack=wavlm, wavlm=wavlm)
            for left, _ in pairs:
                key = left.format(n=11, p="bias")
                assert hf_keys.to_huggingface(hf_keys.to_fairseq(key, pairs), pairs) == key
            assert hf_keys.to_fairseq("encoder.layers.1.attention.q_proj.scale", pairs) is None


@pytest.mark.parametrize("name", ["hubert", "wavlm large", "hf wavlm", "hf data2vec"])
def test_lower_precision_stays_close(name, original, without_onednn):
    source = ragged(SAMPLES)
    teacher = load_teacher(str(original(name).path))
    expected = teacher(source, SAMPLES).hidden_states[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = teacher(source, SAMPLES).hidden_states[-1]
    teacher.follow(source, torch.bfloat16)
    half = teacher(source, SAMPLES).hidden_states[-1]
    for got in (mixed, half):
        assert ((got - expected).norm() / expected.norm()) < 0.1


FAMILIES = ["hubert", "hubert large", "wav2vec2", "hubert_ctc", "wavlm", "hf hubert", "hf wav2vec2", "hf wavlm large",
            "hf data2vec"]  # fmt: skip


def distil(corpus, teacher: Path, num_updates: int = 8, criterion: dict | None = None, **model) -> list[float]:
    """Loss of each of a few updates on one batch, through task and criterion."""
    task, student, criterion = build(corpus, teacher, criterion, model)
    batch = batch_of(task, [0, 1, 2])
    optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
    losses = []
    for _ in range(num_updates):
        loss, sample_size, _ = criterion(student, batch)
        optimizer.zero_grad()
        (loss / sample_size).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_learns_from_every_family(name, original, corpus):
    losses = distil(corpus, original(name).path, criterion={"avg_attn_weight": 0.1}, encoder_layers=2)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("layers", [2, 3, 6])
def test_a_shallow_student_learns_from_twelve_layers(layers, corpus, tmp_path):
    deep = tiny.write_teacher(tmp_path / "deep.pt", encoder_layers=12)
    losses = distil(corpus, deep, encoder_layers=layers)
    assert losses[-1] < 0.8 * losses[0]
    _, _, criterion = build(corpus, deep, model={"encoder_layers": layers})
    assert criterion.teacher_layers == [12 // layers * number for number in range(1, layers + 1)]


@pytest.mark.parametrize("kind", ["huggingface", "student"])
def test_through_fairseqs_trainer(kind, train, tmp_path):
    if kind == "huggingface":
        pytest.importorskip("transformers")
        teacher = tiny_teachers.huggingface(tmp_path / "hf", "wavlm", num_hidden_layers=3).path
    else:
        teacher = tmp_path / "checkpoint_best.pt"
        model = tiny_teachers.randomize(student("starhubert"))
        torch.save(student_state("starhubert", model, {"sample_rate": 16_000, "normalize": False}), teacher)
    finished = train("optimization.max_update=12", "optimization.lr=[0.01]", teacher=teacher)
    assert finished.returncode == 0, finished.stderr
    losses = [float(line.split("loss=")[1].split(",")[0]) for line in finished.stdout.splitlines() if " loss=" in line]
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_the_command_tells_what_a_teacher_is(tmp_path, capsys):
    path = tiny.write_teacher(tmp_path / "t.pt", encoder_layers=24, task={"normalize": True})
    cli.main(["teacher", str(path), "--arch", "starhubert_s"])
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["family"] == "HuBERT (fairseq)"
    assert (told["layers"], told["width"], told["heads"]) == ("24", "24", "2")
    assert told["parameters"] == f"{load_teacher(str(path)).num_parameters:,}"
    assert told["normalize"].startswith("true")
    assert told["sample"] == "rate  16,000 Hz"
    assert told["frame"].startswith("rate   50 Hz")
    assert told["layer"].endswith("starhubert_s: " + " ".join(f"{n}<-{2 * n}" for n in range(1, 13)))
    shallow = tiny.write_teacher(tmp_path / "s.pt")
    cli.main(["teacher", str(shallow)])
    assert "a student cannot be deeper" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="the architectures are starhubert, "):
        cli.main(["teacher", str(path), "--arch", "hubert"])


def test_without_safetensors_one_sentence_says_so(original, monkeypatch):
    path = original("hf hubert").path
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(StarError, match=r"model\.safetensors needs the package safetensors; pip install"):
        load_teacher(str(path))


def test_wavlm_needs_no_torchaudio(original, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    assert load_teacher(str(original("wavlm").path)).num_layers == 2


def test_the_students_first_weights_do_not_depend_on_the_teacher(corpus, original):
    _, first, _ = build(corpus, original("hubert").path, model={"encoder_layers": 2})
    _, second, _ = build(corpus, original("wav2vec2 large").path, model={"encoder_layers": 2})
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name))


@pytest.mark.slow
def test_hubert_large_distils_a_student_on_a_cpu_under_12_gib(tmp_path, corpus):
    """24 layers of 1024, layer-norm extractor, normalized audio, against the whole ``starhubert``: two updates."""
    sizes = {"encoder_embed_dim": 1024, "encoder_ffn_embed_dim": 4096, "encoder_layers": 24,
             "encoder_attention_heads": 16, "conv_pos": 128, "conv_pos_groups": 16, "final_dim": 768,
             "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"}  # fmt: skip
    path = tiny.write_teacher(tmp_path / "large.pt", task={"normalize": True}, **sizes, **LARGE)
    assert path.stat().st_size > 1.2e9
    whole = {name: getattr(starhubert.StarHubertConfig(), name) for name in tiny.STUDENT}
    losses = distil(corpus, path, num_updates=3, **whole)  # the third loss is that after two updates
    path.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # bytes; Linux counts in KiB
    print(f"peak resident memory {peak / 2**30:.2f} GiB")
    assert losses[2] < losses[0]
    assert peak < 12 * 2**30
