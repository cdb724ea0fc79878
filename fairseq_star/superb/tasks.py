"""SUPERB's eleven tasks: their names in s3prl, metrics, checkpoints and splits of the evaluation."""

from dataclasses import dataclass

from fairseq_star.errors import StarError
from fairseq_star.runtime.names import SUPERB_TASKS

FOLDS = tuple(f"fold{number}" for number in range(1, 6))


@dataclass(frozen=True)
class Metric:
    """Metric in the table."""

    name: str
    title: str
    scale: float = 100.0  # times s3prl's output is in ``unit``
    unit: str = "%"
    is_error: bool = False  # lower is better
    digits: int = 2


@dataclass(frozen=True)
class Task:
    """Task of SUPERB in s3prl."""

    name: str
    title: str
    downstream: str  # s3prl's ``-d``
    corpus: str  # its name in ``superb.yaml``
    metrics: tuple[Metric, ...]
    best: str | None = "dev-best.ckpt"  # checkpoint of the best score on dev, if s3prl keeps one
    split: str = "test"  # of the evaluation, s3prl's ``-t``
    variants: tuple[str, ...] = ("",)  # experiments of the task; most have one, without a name
    heads: float = 0.2  # parameters of s3prl's downstream model on a width of 768, in millions: size of checkpoints
    needs_training: bool = True
    dev: tuple[str, bool] | None = ("dev acc", False)  # line on dev by which ``--lr auto`` chooses; lower is better
    submission: str = ""
    modules: tuple[str, ...] = ()  # that it imports
    crops: bool = False  # its training draws parts of utterances at random

    def metric(self, name: str) -> Metric:
        return next(metric for metric in self.metrics if metric.name == name)


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
    Task("ks", "keyword spotting", "speech_commands", "speech_commands", _accuracy(), submission="ks", crops=True),
    Task(
        "qbe", "query by example", "quesst14_dtw", "quesst14", (Metric("mtwv", "MTWV", scale=1, unit="", digits=4),),
        best=None, needs_training=False, dev=None, submission="qbe", modules=("dtw", "lxml", "scipy"),
    ),
    Task("sid", "speaker identification", "voxceleb1", "voxceleb1", _accuracy(), heads=0.5, submission="sid",
         modules=("librosa",), crops=True),
    Task(
        "asv", "speaker verification", "sv_voxceleb1", "voxceleb1", (Metric("eer", "EER", is_error=True),), best=None,
        heads=6.5, dev=None, submission="sv", modules=("librosa", "joblib", "scipy", "sklearn"),
        crops=True,
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
        """Name of its folder: ``ks``, ``er-fold1``, ``asr-lr1e-04``."""
        return self.group if self.lr is None else f"{self.group}-lr{self.lr:.0e}"

    @property
    def group(self) -> str:
        """Name without the learning rate; of a group the best on dev is evaluated."""
        return f"{self.task.name}-{self.variant}" if self.variant else self.task.name


def experiments(names: list[str], rates: tuple[float, ...] = ()) -> list[Experiment]:
    """Return the experiments of tasks, in the order of the table.

    Args:
        names: tasks, of ``TASKS``.
        rates: learning rates to try, each an experiment; empty: that of the settings.

    Raises:
        StarError: rates for a task without a score on dev to choose by.
    """
    chosen = []
    for task in TASKS.values():
        if task.name not in names:
            continue
        if rates and task.dev is None and task.needs_training:
            raise StarError(
                f"--lr auto: s3prl evaluates nothing on dev while it trains {task.name}; leave {task.name} out, or set "
                f"{task.name}.optimizer.lr"
            )
        tried = rates if rates and task.needs_training else (None,)
        chosen += [Experiment(task, variant, lr) for variant in task.variants for lr in tried]
    return chosen
