"""Import of the authors' release format and of other toolkits' files: equal bit for bit, or one clear line."""

import pytest
import torch

from fairseq_star.cli import main
from fairseq_star.deploy.targets import load_target
from fairseq_star.errors import StarError
from fairseq_star.formats import export, import_student, load_student, load_teacher, read_student
from tests.support import convert_cases, tiny_teachers


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return convert_cases.tiny_student(tmp_path_factory.mktemp("student"))


def import_release(folder, student, **changes):
    path = convert_cases.write_release(folder, student, **changes)
    return import_student(str(path), folder / "student.pt", config=str(folder / "released.yaml"))


@pytest.mark.parametrize("case", ["starhubert_xs", "projection", "pre_norm"])
def test_a_release_comes_in_bit_for_bit_and_goes_everywhere(case, tmp_path):
    """Teacher, distillation head and the optimizer's scheduler, an object of s3prl's, are in the file."""
    student = convert_cases.student(tmp_path, case)
    student.normalize = False  # neither recipe knows it
    import_release(tmp_path, student)

    imported = load_student(str(tmp_path / "student.pt"))
    assert convert_cases.equal(imported, student)
    assert export(imported, load_target("s3prl")(), tmp_path / "s3prl.pt").batched < 1e-5
    source = torch.randn(1, 8000)
    states = load_teacher(str(tmp_path / "student.pt"))(source, [8000]).hidden_states
    for ours, theirs in zip(states, student.model(source).hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_reimplementations_yaml_and_armhuberts(student, tmp_path):
    """A config without what has defaults, one with ARMHuBERT's further settings, and one whose layers share maps."""
    import_release(tmp_path, student, distiller={"pos_conv_depth": None, "layer_type": None, "conv_bias": None})
    plain = {"pred_layer_id": "[11]", "layerwise_proj": True, "enable_tr_layer": False, "tr_reduce_factor": 2,
             "fp16": True, "reuse_pattern": "[False, False, False]"}  # fmt: skip
    (tmp_path / "student.pt").unlink()
    head = {"student_model.proj_head.0.weight": torch.ones(2), "student_model.mask_emb": torch.ones(16)}
    import_release(tmp_path, student, distiller=plain, extra=head)
    assert convert_cases.equal(load_student(str(tmp_path / "student.pt")), student)
    (tmp_path / "student.pt").unlink()
    with pytest.raises(StarError, match="reuse_pattern makes layers share attention maps"):
        import_release(tmp_path, student, distiller={"reuse_pattern": "[True, False, True]"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distiller": {"encoder_ffn_embed_dim": 48}}, r"do not fit each other \(.*fc1.weight is .* instead of"),
        ({"distiller": {"encoder_layers": 2}}, r"'encoder.layers.2.*' is unknown and \d+ more"),
        ({"distiller": {"conv_feature_layers": "__import__('os').getcwd()"}}, "conv_feature_layers: something other"),
        ({"distiller": {"crop_seq_to_multiple": 2}}, "crop_seq_to_multiple=2 is nothing that a student"),
        ({"distiller": {"enable_tr_layer": True}}, "enable_tr_layer=True is nothing that a student"),
        ({"distiller": {"layer_type": "conformer"}}, "layer_type='conformer' is not the plain Transformer"),
        ({"distiller": {"dropout": 2.0}}, "dropout=2.0 where a number from 0 to below 1"),
        ({"distiller": {"sinc_extractor": True}}, "setting distiller.sinc_extractor is unknown"),
        ({"extra": {"student_model.layer_norm.weight": None}}, r"\(layer_norm.weight is missing\)"),
        ({"extra": {"student_model.upsampler.weight": torch.ones(2)}}, r"\('upsampler.weight' is unknown\)"),
        ({"extra": {"loss.weight": torch.ones(2)}}, "has the key 'loss.weight', which is neither the student's"),
        ({"extra": {"student_model.layer_norm.weight": "text"}}, "not named tensors"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(student, changes, message, tmp_path):
    with pytest.raises(StarError, match=message) as told:
        import_release(tmp_path, student, **changes)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "student.pt").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("a: [", "is no YAML"),
        ("train: {lr: 1}", "has no section 'distiller'"),
        ("distiller: !!python/object/apply:os.getcwd []", "is no YAML"),
        ("- distiller", "has no section 'distiller'"),
    ],
)
def test_a_wrong_yaml(student, text, message, tmp_path):
    path = convert_cases.write_release(tmp_path, student)
    wrong = tmp_path / "wrong.yaml"
    if text is not None:
        wrong.write_text(text)
    with pytest.raises(SystemExit, match=message):
        main(["import", str(path), "--config", str(wrong), "--out", str(tmp_path / "out.pt")])


class Evil:
    """An object whose unpickling would call ``call``."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def run_me(path):  # what a file might name: it must not be called
    open(path, "w").close()


def test_objects_in_a_release_are_never_built(student, tmp_path):
    import os

    path = convert_cases.write_release(tmp_path, student)
    state = torch.load(path, weights_only=False)
    torch.save({**state, "callbacks": Evil(run_me, str(tmp_path / "called"))}, path)
    imported = read_student(str(path), str(tmp_path / "released.yaml"))
    assert convert_cases.equal(imported, student)
    assert not (tmp_path / "called").exists()
    torch.save({**state, "callbacks": Evil(os.mkdir, str(tmp_path / "called"))}, path)
    with pytest.raises(StarError, match=r"contains posix.mkdir, .* refused and nothing of it was run"):
        read_student(str(path), str(tmp_path / "released.yaml"))
    assert not (tmp_path / "called").exists()


def test_the_command(student, tmp_path, capsys):
    path = convert_cases.write_release(tmp_path, student)
    arguments = ["import", str(path), "--config", str(tmp_path / "released.yaml"), "--out", str(tmp_path / "new.pt")]
    main(arguments)
    assert "3 layers of 16, 16,000 Hz, normalize=False" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="exists already"):
        main(arguments)
    with pytest.raises(SystemExit, match="released with it as --config"):
        main(["import", str(path), "--out", str(tmp_path / "other.pt")])
    with pytest.raises(SystemExit, match="a checkpoint of this project already"):
        main(["import", str(tmp_path / "new.pt"), "--out", str(tmp_path / "other.pt")])
    with pytest.raises(SystemExit, match="--config belongs to a Lightning"):
        main(["import", str(tmp_path / "new.pt"), "--config", "x.yaml", "--out", str(tmp_path / "other.pt")])


def test_any_hubert_can_become_a_student_and_no_wavlm(tmp_path):
    original = tiny_teachers.hubert(tmp_path / "hubert.pt", normalize=True, **tiny_teachers.FAIRSEQ_LARGE)
    imported = import_student(str(original.path), tmp_path / "student.pt")
    assert imported.normalize
    assert imported.config.projection
    source = torch.nn.functional.layer_norm(torch.randn(1, 8000), (8000,))
    states = original.hidden_states(source)
    torch.testing.assert_close(imported.model(source).hidden_states[1:], states[1:], atol=1e-5, rtol=0)

    wavlm = tiny_teachers.huggingface(tmp_path / "wavlm", "wavlm")
    with pytest.raises(StarError, match=r"relative positions \(WavLM\) is no student"):
        import_student(str(wavlm.path), tmp_path / "other.pt")


def test_a_student_is_distilled_on_and_teaches(student, tmp_path, train):
    """The imported checkpoint starts a run (``finetune_from_model``) and is the run's teacher."""
    import_release(tmp_path, student)
    path = tmp_path / "student.pt"
    finished = train(
        f"checkpoint.finetune_from_model={path}", "optimization.max_update=1", "optimization.lr=[0.0]", teacher=path
    )
    assert finished.returncode == 0, finished.stderr
    assert f"Loaded checkpoint {path}" in finished.stdout
    assert "| loss 0 |" in finished.stdout, "the same model as teacher and student, in validation"
    assert convert_cases.equal(load_student(str(tmp_path / "run" / "checkpoint_last.pt")), student)
