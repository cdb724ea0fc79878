"""Exports for s3prl, fairseq and HuggingFace: their libraries give the student's hidden states, or nothing is left."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fairseq_star.cli import main
from fairseq_star.deploy.targets import load_target
from fairseq_star.errors import StarError
from fairseq_star.formats import export, import_student, load_student
from fairseq_star.formats.target import check_sources, student_states
from tests.support import convert_cases, runs, tiny

OURS = ("s3prl", "fairseq", "huggingface")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return convert_cases.tiny_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def exports(student, tmp_path_factory) -> dict[str, Path]:
    """The tiny student in all three formats."""
    folder = tmp_path_factory.mktemp("exports")
    return {name: export(student, load_target(name)(), folder / name).path for name in OURS}


@pytest.fixture(scope="module", params=list(convert_cases.CASES))
def case(request, tmp_path_factory):
    return convert_cases.student(tmp_path_factory.mktemp(request.param), request.param)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def worst(got: list[list[torch.Tensor]], expected: list[list[torch.Tensor]]) -> float:
    differences = [
        (a - b).abs().max()
        for ours, theirs in zip(got, expected, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return float(torch.stack(differences).max())


@pytest.mark.parametrize("name", [*OURS, "torchaudio"])
def test_a_front_end_that_no_library_has_is_refused(student, name, tmp_path, monkeypatch):
    monkeypatch.setattr(student.model, "config", replace(student.config, extractor_mode="rms_norm"))
    with pytest.raises(StarError, match=r"can hold model\.extractor_mode=rms_norm.*take --to torchscript, onnx or pt2"):
        export(student, load_target(name)(), tmp_path / "out")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("name", OURS)
def test_all_hidden_states_are_the_students_and_the_way_back_is_exact(case, name, tmp_path):
    target = load_target(name)()
    exported = export(case, target, tmp_path / "exported")
    assert exported.alone < 1e-5
    assert exported.batched < 1e-5
    assert left_in(tmp_path) == ["exported"]
    # Said again without the exporter's own comparison, in absolute numbers: its largest is relative.
    sources = [30 * source for source in check_sources()]
    assert worst(target.hidden_states(exported.path, sources, padded=False), student_states(case, sources)) < 1e-5

    import_student(str(exported.path), tmp_path / "back.pt")
    assert convert_cases.equal(load_student(str(tmp_path / "back.pt")), case)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", convert_cases.WHOLE)
def test_the_architectures_at_their_full_depth(architecture, tmp_path):
    student = load_student(str(convert_cases.write_checkpoint(tmp_path / "student.pt", architecture)))
    for name in OURS:
        exported = export(student, load_target(name)(), tmp_path / name)
        assert max(exported.alone, exported.batched) < 1e-5, name


@pytest.mark.parametrize("name", OURS)
def test_a_format_that_fails_the_comparison_leaves_nothing(student, name, tmp_path, monkeypatch):
    careless = convert_cases.careless(name, 1e-3)
    (tmp_path / "kept").write_text("old")
    for out, force in [(tmp_path / "new", False), (tmp_path / "kept", True)]:
        if careless.is_folder and force:
            continue
        with pytest.raises(StarError, match=r"differ by .* more than 1e-05; .* was not written"):
            export(student, careless, out, force=force)
    assert left_in(tmp_path) == ["kept"]
    assert (tmp_path / "kept").read_text() == "old"


def test_a_nan_is_no_success(tmp_path):
    broken = convert_cases.tiny_student(tmp_path)
    broken.model.encoder.layers[0].fc1.bias[0] = float("nan")
    with pytest.raises(StarError, match="was not written"):
        export(broken, load_target("s3prl")(), tmp_path / "out")


@pytest.mark.parametrize("moment", ["write", "hidden_states"])
def test_ctrl_c_leaves_nothing(student, moment, tmp_path, monkeypatch):
    target = load_target("huggingface")()

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    def begun(student, path):
        path.mkdir()
        (path / "config.json").write_text("{")
        raise KeyboardInterrupt

    if moment == "write":
        monkeypatch.setattr(target, "write", begun)
    monkeypatch.setattr(target, "hidden_states", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(student, target, tmp_path / "out")
    assert left_in(tmp_path) == []


def test_nothing_is_replaced_without_force(student, tmp_path, monkeypatch):
    target, folder_target = load_target("s3prl")(), load_target("huggingface")()
    taken, folder = tmp_path / "taken", tmp_path / "folder"
    taken.write_text("old")
    monkeypatch.setattr(target, "write", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(StarError, match="exists already; give another name, or --force"):
        export(student, target, taken)
    with pytest.raises(StarError, match=r"the folder .*/nowhere does not exist"):
        export(student, target, tmp_path / "nowhere" / "x")
    with pytest.raises(StarError, match="very file that is converted"):
        export(student, target, student.origin, force=True)
    with pytest.raises(StarError, match="is a file, but a HuggingFace folder is a folder"):
        export(student, folder_target, taken, force=True)
    assert taken.read_text() == "old"

    export(student, folder_target, folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StarError, match=r"also contains 'notes.txt', which would be lost"):
        export(student, folder_target, folder, force=True)
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    (folder / "config.json").write_text("{}")
    export(student, folder_target, folder, force=True)
    assert (folder / "config.json").read_text() != "{}"
    monkeypatch.undo()
    export(student, target, taken, force=True)
    assert left_in(tmp_path) == ["folder", "taken"]
    assert convert_cases.equal(import_student(str(taken), tmp_path / "back.pt"), student)


def test_s3prl_as_its_users_call_it(student, exports):
    """``S3PRLUpstream`` on a ragged batch: L+1 states, or the L layers' outputs of ``fairseq_layers``."""
    from s3prl.nn import S3PRLUpstream

    sources = check_sources()
    batch = torch.nn.utils.rnn.pad_sequence(sources, batch_first=True)
    num_samples = torch.tensor([len(source) for source in sources])
    cases = [
        ("wav2vec2_local", exports["s3prl"], {}, slice(None)),
        ("wav2vec2_local", exports["s3prl"], {"feature_selection": "fairseq_layers"}, slice(1, None)),
        ("hf_hubert_custom", exports["huggingface"], {}, slice(None)),
    ]
    expected = student_states(student, sources, load_target("s3prl")())
    for name, path, options, layers in cases:
        upstream = S3PRLUpstream(name, path_or_url=str(path), extra_conf=options).eval()
        with torch.no_grad():
            states, _ = upstream(batch, num_samples)
        assert len(states) == len(expected[0][layers]), name
        got = [[state[number, : len(own[0])] for state in states] for number, own in enumerate(expected)]
        assert worst(got, [own[layers] for own in expected]) < 5e-6, name


def test_s3prl_would_misread_other_rates(tmp_path):
    other = convert_cases.tiny_student(tmp_path, conv_feature_layers="[(8,10,5)] + [(8,3,2)] * 4 + [(D,2,2)]")
    with pytest.raises(StarError, match="320 samples a frame for granted; this student has 16000 Hz and 160"):
        export(other, load_target("s3prl")(), tmp_path / "out")


STOCK = """
import sys, torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task
fairseq, s3prl, sources, out = sys.argv[1:]
torch.load(s3prl, weights_only=True)
[model], cfg, task = load_model_ensemble_and_task([fairseq])
model.eval()
assert not any(name.startswith("fairseq_star") for name in sys.modules)
with torch.no_grad():
    layers = range(1, len(model.encoder.layers) + 1)
    states = [[model.extract_features(source[None], None, mask=False, output_layer=layer)[0][0] for layer in layers]
              for source in torch.load(sources)]
torch.save({"states": states, "normalize": task.cfg.normalize, "type": type(model).__name__}, out)
"""


def test_fairseq_without_this_plugin(student, exports, tmp_path):
    """A process of stock fairseq under torch's weights_only: it loads, and features are dumped layer by layer."""
    torch.save(check_sources(), tmp_path / "sources.pt")
    paths = [exports["fairseq"], exports["s3prl"], tmp_path / "sources.pt", tmp_path / "out.pt"]
    finished = subprocess.run(
        [sys.executable, "-c", STOCK, *map(str, paths)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    result = torch.load(tmp_path / "out.pt")
    assert (result["type"], result["normalize"]) == ("HubertModel", False)
    assert worst(result["states"], [own[1:] for own in student_states(student, check_sources())]) < 1e-5


def test_fairseq_fine_tunes_it_with_ctc(student, exports, tmp_path):
    """Two updates of ``hubert_ctc`` on letters; the feature extractor is frozen there, the rest learns."""
    tiny.write_corpus(tmp_path, train=8, valid=2)
    (tmp_path / "dict.ltr.txt").write_text("| 1\nH 1\nI 1\n")
    for split, utterances in (("train", 8), ("valid", 2)):
        (tmp_path / f"{split}.ltr").write_text("H I |\n" * utterances)
    finished = runs.run([
        sys.executable, "-c", runs.TRAIN, "--config-dir", "configs", "--config-name", "finetune_ctc",
        "common.user_dir=fairseq_star", f"task.data={tmp_path}", f"model.w2v_path={exports['fairseq']}",
        "common.cpu=true", "common.log_interval=1", "common.tensorboard_logdir=null", "dataset.num_workers=0",
        "dataset.train_subset=train", f"checkpoint.save_dir={tmp_path / 'run'}", "optimization.max_update=2",
        "optimization.lr=[0.001]", "optimization.update_freq=[1]", "model.mask_channel_length=4",
        "checkpoint.best_checkpoint_metric=loss",
    ])  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "num_updates=2" in finished.stdout
    tuned = torch.load(tmp_path / "run" / "checkpoint_last.pt", weights_only=True)["model"]
    tuned = {key.removeprefix("w2v_encoder.w2v_model."): value for key, value in tuned.items()}
    weights = student.weights()
    assert weights.keys() < tuned.keys()
    frozen = {key for key in weights if key.startswith("feature_extractor.")}
    assert all(torch.equal(tuned[key], weights[key]) for key in frozen)
    # Adam's first two steps are at most the rate each: what was loaded is the student, and it moves.
    moves = [float((tuned[key] - weights[key]).abs().max()) for key in weights.keys() - frozen]
    assert 1e-5 < max(moves) < 5e-3


def test_huggingface_card_and_preprocessor(tmp_path):
    from transformers import AutoFeatureExtractor

    normalized = convert_cases.student(tmp_path, "pre_norm")
    folder = export(normalized, load_target("huggingface")(), tmp_path / "hf").path
    assert AutoFeatureExtractor.from_pretrained(folder).do_normalize is True
    card = (folder / "README.md").read_text()
    assert "attention_mask" in card
    assert "group norm" not in card
    assert "identity" in card


def test_the_command(student, tmp_path, capsys):
    main(["export", student.origin, "--to", "s3prl", "--out", str(tmp_path / "out.pt")])
    told = capsys.readouterr().out
    assert "s3prl file" in told
    assert f"-u wav2vec2_local -k {tmp_path / 'out.pt'}" in told
    with pytest.raises(SystemExit, match="exists already"):
        main(["export", student.origin, "--to", "s3prl", "--out", str(tmp_path / "out.pt")])
    with pytest.raises(SystemExit, match="--int8 is no option of --to s3prl"):
        main(["export", student.origin, "--to", "s3prl", "--int8", "--out", str(tmp_path / "new.pt")])
    with pytest.raises(SystemExit, match="no student of this project"):
        main(["export", str(tmp_path / "out.pt"), "--to", "s3prl", "--out", str(tmp_path / "new.pt")])
