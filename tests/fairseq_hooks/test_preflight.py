"""Options that cannot be end in one line before training; those that can are let by."""

import contextlib
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import CheckpointConfig, FairseqConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fairseq_star.data.long_recordings import out_of_memory_is_star_error
from fairseq_star.deploy.targets import TARGETS, load_target
from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks.hubert_ctc import check_pretrained
from fairseq_star.fairseq_hooks.preflight import GPU_PRECISIONS, LAST, LEAST, RESETS, check_options, starting_point
from fairseq_star.formats.fairseq import override
from fairseq_star.tasks.star_distillation import StarDistillationConfig
from tests.support import tiny
from tests.support.steps import build, dataset_of

STAR = SimpleNamespace(logged=("loss", "layerwise", "intra_layer"))


def whole_config(**options: object):
    """What is looked at of a run's configuration."""
    cfg = OmegaConf.create({"common": {"cpu": False}, "dataset": {"disable_validation": False}})
    defaults = {
        "checkpoint.best_checkpoint_metric": "loss", "lr_scheduler._name": "fixed", "optimization.max_update": 0,
    }  # fmt: skip
    for name, value in (defaults | options).items():
        OmegaConf.update(cfg, name, value)
    return cfg


@pytest.mark.parametrize("name", LEAST)
@pytest.mark.parametrize("value", [-1, 0, 1, 2, None])
def test_numbers_below_what_can_be_are_named(name, value):
    cfg = whole_config(**{name: [2, value] if name == "optimization.update_freq" else value})
    if value is None or value >= LEAST[name]:
        check_options(cfg, STAR, on_gpu=False)
    else:
        with pytest.raises(StarError, match=rf"^{re.escape(name)}=.* must be {LEAST[name]} or more$"):
            check_options(cfg, STAR, on_gpu=False)


def test_the_names_are_fairseqs():
    for name in [*LEAST, *(f"common.{name}" for name in GPU_PRECISIONS), *(f"checkpoint.{name}" for name in RESETS)]:
        section, option = name.split(".")
        config = StarDistillationConfig if section == "task" else FairseqConfig.__dataclass_fields__[section].type
        assert option in config.__dataclass_fields__, name


@pytest.mark.parametrize("name", GPU_PRECISIONS)
@pytest.mark.parametrize("cpu", [False, True])
def test_half_precisions_need_a_gpu(name, cpu):
    cfg = whole_config(**{f"common.{name}": True, "common.cpu": cpu})
    check_options(cfg, STAR, on_gpu=True)
    with pytest.raises(StarError, match=rf"common\.{name}=true needs a GPU, and .*{'cpu=true' if cpu else 'none'}"):
        check_options(cfg, STAR, on_gpu=False)


def test_bfloat16_trains_on_a_cpu_too():
    check_options(whole_config(**{"common.bf16": True}), STAR, on_gpu=False)


@pytest.mark.parametrize("warmup_updates", [9, 10, 11])
def test_a_warm_up_that_ends_with_the_run(warmup_updates):
    schedule = {"_name": "cosine", "warmup_updates": warmup_updates}
    cfg = whole_config(**{"lr_scheduler": schedule, "optimization.max_update": 10})
    if warmup_updates != 10:
        check_options(cfg, STAR, on_gpu=False)
    else:
        with pytest.raises(StarError, match=r"lr_scheduler\.warmup_updates=10 is all of optimization\.max_update"):
            check_options(cfg, STAR, on_gpu=False)


@pytest.mark.parametrize("metric", ["wer", "los"])
def test_a_metric_that_no_validation_logs(metric, corpus, teacher_path):
    _, _, criterion = build(corpus, teacher_path, {"layerwise_weight": 0.0, "last_attn_weight": 1.0})
    assert criterion.logged == ("loss", "layerwise", "intra_layer", "last_attn")
    with pytest.raises(StarError, match=f"best_checkpoint_metric={metric} .*take one of loss, "):
        check_options(whole_config(**{"checkpoint.best_checkpoint_metric": metric}), criterion, on_gpu=False)
    off = {"checkpoint.best_checkpoint_metric": metric, "dataset.disable_validation": True}
    check_options(whole_config(**off), criterion, on_gpu=False)


def what_fairseq_loads(cfg) -> tuple[str, bool]:
    """The path that fairseq itself restores from, and whether without the optimizer."""
    load = Mock(side_effect=KeyboardInterrupt)
    trainer = SimpleNamespace(checkpoint_suffix=cfg.checkpoint_suffix, load_checkpoint=load)
    with contextlib.suppress(KeyboardInterrupt):
        checkpoint_utils.load_checkpoint.__wrapped__(cfg, trainer)
    path, reset_optimizer, *_ = load.call_args.args
    return path, bool(reset_optimizer)


@pytest.fixture(scope="module")
def save_dirs(tmp_path_factory) -> dict[bool, Path]:
    """A run's folder without and with a checkpoint to resume from."""
    folders = {resumes: tmp_path_factory.mktemp("run") for resumes in (False, True)}
    for resumes, folder in folders.items():
        (folder / "there.pt").touch()
        (folder / "there-1.pt").touch()
        (folder / "folder.pt").mkdir()
        if resumes:
            (folder / LAST).touch()
            (folder / "checkpoint_last-1.pt").touch()
    return folders


NAMES = st.sampled_from([None, "there.pt", "missing.pt", "folder.pt", ""])


@given(
    resumes=st.booleans(),
    restore_file=NAMES,
    continue_once=NAMES,
    finetune_from_model=NAMES,
    reset_optimizer=st.booleans(),
    suffix=st.sampled_from(["", "-1"]),
)
def test_a_run_starts_from_what_fairseq_loads_and_never_anew_in_silence(save_dirs, resumes, suffix, **names):
    save_dir = save_dirs[resumes]
    reset_optimizer = names.pop("reset_optimizer")
    paths = {key: str(save_dir / name) if name else name for key, name in names.items()}
    paths["restore_file"] = LAST if paths["restore_file"] is None else paths["restore_file"]
    options = CheckpointConfig(save_dir=str(save_dir), checkpoint_suffix=suffix, reset_optimizer=reset_optimizer)
    cfg = OmegaConf.create({**vars(options), **paths})
    try:
        start, told = starting_point(cfg, suffix), None
    except StarError as error:
        start, told = None, str(error)
    if told is not None:
        assert re.match(r"checkpoint\.\w+[^\n]*$", told)
        with contextlib.suppress(ValueError):  # fairseq's own, of options that contradict each other
            path, _ = what_fairseq_loads(cfg)
            assert not Path(path).is_file(), "what fairseq would have restored from was refused"
        return
    path, reset = what_fairseq_loads(cfg)
    if start is None:
        assert not resumes
        assert path == str(save_dir / f"checkpoint_last{suffix}.pt")
        assert all(paths[key] is None for key in ("continue_once", "finetune_from_model"))
    else:
        assert (start.path, start.weights_alone) == (path, reset)
        assert Path(path).is_file()


def test_a_restore_file_of_the_runs_own_folder_is_found_for_the_user(tmp_path):
    (tmp_path / "checkpoint_best.pt").touch()
    cfg = OmegaConf.structured(CheckpointConfig(save_dir=str(tmp_path), restore_file="checkpoint_best.pt"))
    with pytest.raises(StarError, match=rf"restore_file: .* not there .* did you mean {tmp_path}/checkpoint_best\.pt"):
        starting_point(cfg)


@pytest.mark.parametrize("overrides", ["{'lr':", "[1]", "lr=1", "__import__('os')"])
def test_optimizer_overrides_that_are_no_dict(overrides):
    with pytest.raises(StarError, match=r"checkpoint\.optimizer_overrides=.* is no Python dict"):
        starting_point(OmegaConf.structured(CheckpointConfig(optimizer_overrides=overrides)))


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_save_dir_that_is_a_file(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"fairseq-star: checkpoint\.save_dir: .*file.* cannot be written to") as told:
        checkpoint_utils.verify_checkpoint_directory(str(tmp_path / "file" / below))
    assert "\n" not in str(told.value)
    checkpoint_utils.verify_checkpoint_directory(str(tmp_path / "new"))
    assert (tmp_path / "new").is_dir()


@given(
    st.lists(st.integers(400, 2000), min_size=1, max_size=12),
    st.integers(400, 2200),
    st.none() | st.integers(400, 2000),
)
def test_no_utterance_is_left_out_for_its_length(tmp_path_factory, lengths, max_tokens, crop):
    manifest = tmp_path_factory.getbasetemp() / "any.tsv"
    manifest.write_text("\n".join(["/nowhere", *(f"{n}.wav\t{length}" for n, length in enumerate(lengths))]) + "\n")
    data = dataset_of(manifest, max_sample_size=crop)
    longest = max(min(length, crop or length) for length in lengths)
    indices, ignored = data.filter_indices_by_size(data.ordered_indices(), max_tokens)
    assert len(ignored) == 0
    if longest > max_tokens:
        with pytest.raises(StarError, match=rf"max_tokens={max_tokens} .* {longest} samples of /nowhere/\d+\.wav"):
            data.batch_by_size(indices, max_tokens=max_tokens)
    else:
        batches = data.batch_by_size(indices, max_tokens=max_tokens)
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))


def test_max_tokens_of_a_task_is_told_in_one_line(corpus, teacher_path):
    task, _, _ = build(corpus, teacher_path)
    task.load_dataset("valid")
    with pytest.raises(SystemExit, match=r"fairseq-star: dataset\.max_tokens=1000 .*dataset\.max_tokens_valid"):
        task.get_batch_iterator(task.dataset("valid"), max_tokens=1000, max_positions=1000)


def test_a_crop_below_one_frame(corpus, teacher_path):
    with pytest.raises(SystemExit, match=r"task\.max_sample_size=399 crops .* one frame, 400 samples"):
        build(corpus, teacher_path, max_sample_size=399)
    build(corpus, teacher_path, max_sample_size=400)


def test_long_recordings_are_named_with_the_option_that_crops_them(tmp_path, teacher_path, caplog):
    lines = ["/nowhere", "book.flac\t19200000", "chapter.flac\t960001", *(f"{n}.wav\t960000" for n in range(3))]
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    for options, told in [({}, True), ({"max_sample_size": 960_000}, False)]:
        caplog.clear()
        task, _, _ = build(tmp_path, teacher_path, skip_audio_check=True, **options)
        task.load_dataset("train")
        messages = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert len(messages) == told
        if told:
            assert (
                "2 of 5 recordings are longer than 60 s, the longest /nowhere/book.flac (20.0 minutes)" in messages[0]
            )
            assert "task.max_sample_size=" in messages[0]


def test_memory_refused_names_the_longest_of_the_batch():
    sample = {"num_samples": [16_000, 320_000], "paths": ["a.wav", "b c.wav"]}
    told = r"out of memory .* 2 utterances, the longest b c\.wav \(20 s\); crop with task\.max_sample_size"
    with pytest.raises(StarError, match=told), out_of_memory_is_star_error(sample, 16_000):
        torch.empty(2**60)
    with pytest.raises(RuntimeError, match="shape"), out_of_memory_is_star_error(sample, 16_000):
        torch.zeros(2).view(3)


def pretrained(path: Path, **changes: object) -> Path:
    torch.save({**tiny.hubert_state(), **changes}, path)
    return path


def distilled(path: Path) -> Path:
    return pretrained(path, cfg={"model": {"_name": "starhubert_s"}, "task": {"_name": "star_distillation"}})


BAD_PRETRAINED = {
    "missing": (lambda path: path, "is not there"),
    "a run's own": (distilled, r"export it with `fairseq-star export '.*a b\.pt' --to fairseq --out"),
    "fine-tuned": (lambda path: pretrained(path, cfg={"model": {"_name": "hubert_ctc"}}), "'hubert_ctc'"),
    "wav2vec 2.0": (lambda path: pretrained(path, cfg={"model": {"_name": "wav2vec2"}}), "'wav2vec2'"),
    "no config": (lambda path: pretrained(path, cfg=None), "no pretrained HuBERT"),
    "no weights": (lambda path: pretrained(path, model=None), "no pretrained HuBERT"),
    "cut": (lambda path: path.write_bytes(b"PK\x03\x04") and path, "truncated or damaged"),
}


@pytest.mark.parametrize("case", BAD_PRETRAINED)
def test_what_cannot_be_fine_tuned(case, tmp_path):
    make, message = BAD_PRETRAINED[case]
    path = make(tmp_path / "a b.pt")
    with pytest.raises(StarError, match=message) as error:
        check_pretrained(str(path), normalize=False)
    assert str(error.value).startswith(f"model.w2v_path: {path}")
    assert "\n" not in str(error.value)


def test_fine_tuning_looks_at_its_checkpoint_first(tmp_path):
    from fairseq.models.hubert.hubert_asr import HubertCtc

    path = distilled(tmp_path / "checkpoint_best.pt")
    cfg = SimpleNamespace(w2v_args=None, w2v_path=str(path), normalize=False, apply_mask=True)
    with pytest.raises(SystemExit, match=r"fairseq-star: model\.w2v_path: .* --to fairseq"):
        HubertCtc.build_model(cfg, task=None)


def test_fine_tuning_hears_what_the_student_heard(tmp_path):
    path = pretrained(tmp_path / "t.pt")
    check_pretrained(str(path), normalize=False)
    with pytest.raises(StarError, match=r"trained with normalize=false; set task\.normalize=false"):
        check_pretrained(str(path), normalize=True)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\\"), min_size=1))
def test_a_path_comes_out_of_shell_and_hydra_as_it_is(name):
    [argument] = shlex.split(override("model.w2v_path", f"/{name}"))
    parsed = OverridesParser.create().parse_override(argument)
    assert (parsed.key_or_group, parsed.value()) == ("model.w2v_path", f"/{name}")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["plain", "a b'c, [d]=(e).pt"])
def test_printed_commands_hold_the_path_whole(target, name, tmp_path):
    path = tmp_path / name
    step = load_target(target, check=False)().next_step(path)
    if target == "sherpa-onnx":
        assert f"({str(path / 'model.onnx')!r}, {str(path / 'tokens.txt')!r})" in step
        compile(step, "next step", "exec")
        return
    if target in ("torchaudio", "torchscript", "onnx", "pt2"):
        assert f"({str(path)!r}" in step
        compile(step, "next step", "exec")
        return
    command = step[step.index("  fairseq-hydra-train" if target == "fairseq" else "  python run_downstream") :]
    words = shlex.split(command)
    assert str(path) in words if target != "fairseq" else shlex.split(override("model.w2v_path", str(path)))[0] in words
    if target == "huggingface":
        _, flag, program = shlex.split(step.splitlines()[0])
        assert flag == "-c"
        compile(program, "next step", "exec")
        assert repr(str(path)) in program
