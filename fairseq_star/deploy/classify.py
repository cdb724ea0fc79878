"""Labels of audio files by a fine-tuned student: its checkpoint, or an exported ONNX file or program of torch.export.

Audio is read as by ``transcribe``. Of audio above two minutes, windows are run one by one: the scores, which are linear
in the mean over frames, are averaged over all frames.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fairseq_star.deploy.transcribe import AT_ONCE, Command, Tuned, load, samples_of
from fairseq_star.errors import StarError
from fairseq_star.formats.classification import ClassificationHead

COMMAND = Command("classify", ClassificationHead.kind, "configs/finetune_classification.yaml")


class Classifier(Tuned):
    """A student fine-tuned on labels that is ready to label utterances."""

    @torch.no_grad()
    def log_probs(self, samples: Tensor) -> Tensor | None:
        """Return the labels' log-probabilities for audio (mono, float32, at the student's rate); None without a frame.

        Log-probabilities are scores less a number that all labels share, so their mean, made to sum to 1 again, is the
        softmax of the mean of the scores.
        """
        total, num_frames = torch.zeros(len(self.labels)), 0
        for window in samples.split(AT_ONCE * self.sample_rate):
            log_probs, frames = self.outputs(window)
            if frames:
                total, num_frames = total + log_probs[0] * frames, num_frames + frames
        return torch.log_softmax(total / num_frames, dim=0) if num_frames else None


def load_classifier(path: str, num_threads: int = 0) -> Classifier:
    """Load a fine-tuned checkpoint, or what ``export --to onnx`` or ``--to pt2`` wrote of one.

    Args:
        path: the checkpoint; the exported folder, or the file in it.
        num_threads: of onnxruntime; 0: a core each.

    Raises:
        StarError: the file cannot be read, or is of another kind.
    """
    return load(Classifier, COMMAND, path, None, num_threads)


def classify(
    model: str, files: list[str], *, resample: bool = False, num_threads: int = 0
) -> Iterator[tuple[str, str, float]]:
    """Yield each file, its most probable label, and the label's probability.

    Args:
        model, num_threads: as of :func:`load_classifier`.
        files: of audio; ``-`` is one that comes through standard input.
        resample: convert audio of another rate, or of several channels, whose mean is taken.

    Raises:
        StarError: a model or a file that cannot be read, or audio of another form.
    """
    classifier = load_classifier(model, num_threads)
    for file in files:
        samples = samples_of(file, classifier.sample_rate, resample, COMMAND.name)
        log_probs = classifier.log_probs(samples)
        if log_probs is None:
            raise StarError(f"{COMMAND.name}: {file} holds {len(samples)} samples, fewer than a frame takes")
        best = int(log_probs.argmax())
        yield file, classifier.labels[best], float(log_probs[best].exp())
