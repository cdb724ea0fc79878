"""Fine-tuning with fairseq's own hubert_ctc: ``configs/finetune_ctc.yaml`` on labels that manifests/labels.py wrote."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from fairseq_star.cli import main
from fairseq_star.manifest import ManifestEntry, read_manifest, write_manifest
from tests.support import ROOT, tiny
from tests.support.runs import TRAIN, hydra_arguments, run, saved

pytest.importorskip("editdistance", reason="editdistance is not installed (extra [finetune])")
pytest.importorskip("sentencepiece", reason="sentencepiece is not installed (extra [finetune])")

from manifests import labels

WORDS = ["A CAB", "BAD", "ACE BED", "DAB A BEE"]


def finetune(data: Path, checkpoint: Path, save_dir: Path, *overrides: str):
    return run(
        [
            sys.executable, "-c", TRAIN, "--config-dir", "configs", "--config-name", "finetune_ctc",
            "common.user_dir=fairseq_star", f"task.data={data}", f"model.w2v_path={checkpoint}",
            f"checkpoint.save_dir={save_dir}", "common.tensorboard_logdir=null", "common.log_interval=1",
            "dataset.train_subset=train", "dataset.num_workers=0", "optimization.update_freq=[1]", *overrides,
        ]
    )  # fmt: skip


def logged(log: str, what: str, name: str) -> list[float]:
    """The values of one name in the lines of one kind of fairseq's simple log."""
    return [float(value) for value in re.findall(rf"\[{what}\]\[INFO\].*?[ |,]{name}[= ]([\d.]+)", log)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Four noises with transcripts, to train and to validate on."""
    folder = tmp_path_factory.mktemp("finetune")
    audio = tiny.write_audio(folder / "audio", [0.6, 0.7, 0.8, 0.9])
    tiny.write_tsv(folder / "train.tsv", audio)
    tiny.write_tsv(folder / "valid.tsv", audio)
    (folder / "text").write_text("".join(f"utt{number:03d} {words}\n" for number, words in enumerate(WORDS)))
    manifests = [str(folder / f"{split}.tsv") for split in ("train", "valid")]
    assert labels.main([*manifests, "--text", str(folder / "text"), "--subwords", "10"]) == 0
    return folder


@pytest.mark.parametrize(("labels_of", "post_process"), [("ltr", "letter"), ("spm", "sentencepiece")])
def test_fine_tuning_starts_learns_tells_wer_and_resumes(data, teacher_path, tmp_path, labels_of, post_process):
    overrides = [
        f"task.labels={labels_of}", f"criterion.post_process={post_process}", "model.apply_mask=false",
        "model.layerdrop=0", "model.feature_grad_mult=1", "optimization.lr=[0.003]",
        "lr_scheduler.phase_ratio=[0.1,0.8,0.1]", "dataset.validate_interval=12", "optimization.max_update=12",
    ]  # fmt: skip
    done = finetune(data, teacher_path, tmp_path / "run", *overrides)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-3000:]
    losses = logged(log, "train_inner", "loss")
    assert len(losses) == 12
    assert losses[-1] < 0.6 * losses[0]
    assert len(logged(log, "valid", "wer")) >= 1
    if labels_of == "ltr":
        more = finetune(data, teacher_path, tmp_path / "run", *overrides, "optimization.max_update=13")
        log = more.stdout + more.stderr
        assert more.returncode == 0, log[-3000:]
        assert "Loaded checkpoint" in log
        assert len(logged(log, "train_inner", "loss")) == 1


def test_the_config_opens_with_its_command():
    text = (ROOT / "configs" / "finetune_ctc.yaml").read_text(encoding="utf-8")
    assert "--config-name finetune_ctc common.user_dir=fairseq_star " in text.splitlines()[1]
    config = yaml.safe_load(text)
    assert config["task"]["_name"] == "audio_finetuning"  # reads subwords and other letters beyond ASCII whole
    assert config["dataset"]["required_batch_size_multiple"] == 1


@pytest.mark.slow
def test_from_speech_to_an_exported_student_that_spells(tmp_path):
    """The whole way, small: speak, distil, export, label, fine-tune; letters fall well below what blanks alone cost."""
    pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed (extra [demo])")
    from manifests.demo import corpus as demo_corpus

    corpus, runs = tmp_path / "corpus", tmp_path / "runs"
    demo_corpus.main([str(corpus), "--minutes", "4", "--train-speakers", "4", "--dev-speakers", "2"])
    teacher = ROOT / "assets" / "demo_teacher" / "demo_hubert.pt"
    arguments = hydra_arguments(corpus, teacher, runs / "student", "optimization.max_update=20", config="demo")
    done = run([argument for argument in arguments if not argument.startswith(("+model", "model."))])
    assert done.returncode == 0, done.stderr[-3000:]
    exported = tmp_path / "student_fairseq.pt"
    command = [sys.executable, "-m", "fairseq_star.cli", "export", str(runs / "student" / "checkpoint_best.pt")]
    done = run([*command, "--to", "fairseq", "--out", str(exported)])
    assert done.returncode == 0, done.stderr[-3000:]
    root, entries = read_manifest(corpus / "train.tsv")
    write_manifest(corpus / "train.tsv", root, [ManifestEntry(*entry) for entry in entries if entry[1] < 96_000])
    assert labels.main([str(corpus / "train.tsv"), str(corpus / "valid.tsv")]) == 0
    done = finetune(
        corpus, exported, runs / "ctc", "model.apply_mask=false", "model.layerdrop=0", "model.feature_grad_mult=1",
        "dataset.max_tokens=320000", "optimization.lr=[0.002]", "optimization.clip_norm=10",
        "optimization.max_update=60", "lr_scheduler.phase_ratio=[0.1,0.4,0.5]", "dataset.validate_interval=100",
    )  # fmt: skip
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-3000:]
    bits = logged(log, "train_inner", "nll_loss")
    assert sum(bits[-5:]) / 5 < 0.7 * max(bits[:3])
    assert logged(log, "valid", "uer")


@pytest.mark.slow
def test_fine_tuning_hides_frames_with_the_vector_that_the_student_learned(train, data, tmp_path):
    hiding = ["task.mask_prob=0.5", "task.mask_length=3", "optimization.max_update=3"]
    done = train(*hiding, save_dir=tmp_path / "student")
    assert done.returncode == 0, done.stderr
    exported = tmp_path / "student.pt"
    main(["export", str(tmp_path / "student" / "checkpoint_last.pt"), "--to", "fairseq", "--out", str(exported)])
    options = [
        "task.labels=ltr", "criterion.post_process=letter", "model.apply_mask=true", "model.mask_prob=0.3",
        "model.mask_length=2", "model.mask_channel_prob=0", "model.layerdrop=0", "model.freeze_finetune_updates=100",
        "optimization.lr=[0.003]",
        "lr_scheduler.phase_ratio=[0.1,0.8,0.1]", "dataset.validate_interval=12", "optimization.max_update=12",
    ]  # fmt: skip
    tuned = finetune(data, exported, tmp_path / "tuned", *options)
    assert tuned.returncode == 0, (tuned.stdout + tuned.stderr)[-3000:]
    learned, weights = saved(exported)["model"]["mask_emb"], saved(tmp_path / "tuned" / "checkpoint_last.pt")["model"]
    assert learned.any()
    # Frozen for so few updates: what hides frames is the student's own vector.
    assert torch.equal(weights["w2v_encoder.w2v_model.mask_emb"], learned)
