"""The eleven tasks: what s3prl calls them, what each is scored by, which checkpoint is evaluated on which split."""

from dataclasses import dataclass, field

from fairseq_star.errors import StarError
from fairseq_star.runtime.names import SUPERB_TASKS

FOLDS = tuple(f"fold{number}" for number in range(1, 6))


@dataclass(frozen=True)
class Metric:
    """A number of the table.

    ``scale`` times what s3prl prints is ``unit``; ``is_error`` says that lower is better.
    """

    name: str
    title: str
    scale: float = 100.0
    unit: str = "%"
    is_error: bool = False
    digits: int = 2


@dataclass(frozen=True)
class Task:
    """A task of SUPERB in s3prl.

    downstream: s3prl's ``-d``.
    corpus: its name in ``superb.yaml``.
    best: the checkpoint that s3prl keeps at the best score on dev; None where it keeps none.
    split: what is evaluated, s3prl's ``-t``.
    variants: experiments of the task, beside its name; one without a name for most.
    heads: parameters of s3prl's downstream model on a width of 768, in millions: what its checkpoints weigh.
    dev: the line on dev by which ``--lr auto`` chooses, as ``parsing.printed`` reads it, and whether lower is better.
    """

    name: str
    title: str
    downstream: str
    corpus: str
    metrics: tuple[Metric, ...]
    best: str | None = "dev-best.ckpt"
    split: str = "test"
    variants: tuple[str, ...] = ("",)
    heads: float = 0.2
    needs_training: bool = True
    dev: tuple[str, bool] | None = ("dev acc", False)
    submission: str = ""
    modules: tuple[str, ...] = field(default=())


def _accuracy(title: str = "accuracy") -> tuple[Metric, ...]:
    return (Metric("acc", title),)


_TASKS = (
    Task(
        "pr", "phoneme recognition", "ctc", "librispeech", (Metric("per", "PER", is_error=True),), heads=0.2,
        dev=("dev per", True), submission="pr", modules=("editdistance", "joblib"),
    ),
    Task(
        "asr", "speech recognition", "asr", "librispeech", (Metric("wer", "WER", scale=1, is_error=True),),
        best="dev-clean-best.ckpt", split="test-clean", heads=43, dev=("dev-clean wer", True),
        submission="asr_no_lm", modules=("editdistance", "pandas"),
    ),
    Task("ks", "keyword spotting", "speech_commands", "speech_commands", _accuracy(), submission="ks"),
    Task(
        "qbe", "query by example", "quesst14_dtw", "quesst14", (Metric("mtwv", "MTWV", scale=1, unit="", digits=4),),
        best=None, needs_training=False, dev=None, submission="qbe", modules=("dtw", "lxml", "scipy"),
    ),
    Task("sid", "speaker identification", "voxceleb1", "voxceleb1", _accuracy(), heads=0.5, submission="sid",
         modules=("librosa",)),
    Task(
        "asv", "speaker verification", "sv_voxceleb1", "voxceleb1", (Metric("eer", "EER", is_error=True),), best=None,
        heads=6.5, dev=None, submission="sv", modules=("librosa", "joblib", "scipy", "sklearn"),
    ),
    Task(
        "sd", "speaker diarization", "diarization", "librimix", (Metric("der", "DER", is_error=True),),
        best="best-states-dev.ckpt", heads=2.7, dev=("dev acc", False), submission="sd",
        modules=("h5py", "pandas", "scipy"),
    ),
    Task("ic", "intent classification", "fluent_commands", "fluent_speech_commands", _accuracy(), submission="ic",
         modules=("pandas",)),
    Task(
        "sf", "slot filling", "ctc", "snips",
        (Metric("slot_type_f1", "F1"), Metric("slot_value_cer", "CER", is_error=True)), heads=43,
        dev=("dev slot_type_f1", False), submission="sf", modules=("editdistance", "joblib"),
    ),
    Task("er", "emotion recognition", "emotion", "iemocap", _accuracy(), variants=FOLDS, submission="er"),
    Task(
        "se", "speech enhancement", "enhancement_stft", "voicebank",
        (Metric("si_sdr", "SI-SDRi", scale=1, unit="dB"), Metric("stoi", "STOI"),
         Metric("pesq", "PESQ", scale=1, unit="")),
        best="best-states-dev.ckpt", heads=52, dev=("dev pesq", False), submission="se",
        modules=("asteroid", "librosa", "h5py", "pesq", "pystoi"),
    ),
)  # fmt: skip
TASKS = {task.name: task for task in _TASKS}
assert tuple(TASKS) == SUPERB_TASKS


@dataclass(frozen=True)
class Experiment:
    """One training and evaluation: a task, one of its variants, and a learning rate where several are tried."""

    task: Task
    variant: str = ""
    lr: float | None = None

    @property
    def name(self) -> str:
        """Of its folder: ``ks``, ``er-fold1``, ``asr-lr1e-04``."""
        return self.group if self.lr is None else f"{self.group}-lr{self.lr:.0e}"

    @property
    def group(self) -> str:
        """The name without the learning rate: of experiments of one group the best on dev is evaluated."""
        return f"{self.task.name}-{self.variant}" if self.variant else self.task.name


def experiments(names: list[str], rates: tuple[float, ...] = ()) -> list[Experiment]:
    """The experiments of tasks, in the order of the table.

    Args:
        names: of ``TASKS``.
        rates: learning rates to try, each an experiment; empty: the setting's own.

    Raises:
        StarError: rates for a task that has nothing to choose one by.
    """
    found = []
    for task in TASKS.values():
        if task.name not in names:
            continue
        if rates and task.dev is None and task.needs_training:
            raise StarError(
                f"--lr auto: s3prl evaluates nothing on dev while it trains {task.name}; leave {task.name} out, or set "
                f"{task.name}.optimizer.lr"
            )
        tried = rates if rates and task.needs_training else (None,)
        found += [Experiment(task, variant, lr) for variant in task.variants for lr in tried]
    return found
