"""sherpa-onnx: a fine-tuned student for its offline recognizer, on servers, phones and in the browser.

    import sherpa_onnx
    recognizer = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc("FOLDER/model.onnx", "FOLDER/tokens.txt")
    stream = recognizer.create_stream()
    stream.accept_waveform(sample_rate, samples)        # float32, -1 to 1; another rate than 16 kHz is resampled
    recognizer.decode_stream(stream)
    print(stream.result.text)

Of sherpa-onnx's CTC slots one takes raw audio, Omnilingual ASR's: one utterance (1 x samples) in, log-probabilities
(1 x T x tokens) out. It brings each utterance to zero mean and unit variance first, as a student may have been trained.
For one that takes audio as it was recorded the file restores the level: sherpa-onnx divides by the root of variance +
:data:`EPSILON`, so that the variance which is left, v / (v + epsilon), tells v. The mean stays lost, but a first norm
over an utterance's channels does not depend on it.

None of its streaming slots fits: T-one's is the one that takes raw audio, and its state is 16-bit floats, in which a
running norm's sums overflow.

Source: sherpa-onnx 2.0.1, ``csrc/``: ``offline-recognizer-ctc-impl.h``, ``offline-omnilingual-asr-ctc-model.cc``,
``symbol-table.cc``, ``online-t-one-ctc-model.cc``.
"""

import importlib.util
from pathlib import Path
from typing import ClassVar, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_star.deploy.attention import attention_by_blocks
from fairseq_star.deploy.inference_module import InferenceStudent, head_metadata
from fairseq_star.deploy.onnx import OPSET, Onnx, complete
from fairseq_star.errors import StarError
from fairseq_star.formats.ctc import SPACE, TOKENS, CtcHead
from fairseq_star.formats.student import Student
from fairseq_star.formats.target import check_sources

EPSILON = 1e-5  # of sherpa-onnx's normalization
LEAST = 1e-6  # of what is left of the variance: its rounding errors are below; reached at 10 dB above full scale
SAMPLES = "samples"  # the file's input
BYTE_BPE = 0xC6  # the largest byte of tokens that sherpa-onnx takes for byte-level subwords


class SherpaOnnx(Onnx):
    """``model.onnx``, an :class:`InferenceStudent` of one utterance, and ``tokens.txt``."""

    title = "sherpa-onnx folder"
    streams = False
    heads: ClassVar = (CtcHead,)

    def __init__(self, int8: bool = False, int4: bool = False):
        super().__init__(int8=int8, int4=int4)
        self.title = self.title.replace("ONNX file", "sherpa-onnx folder")

    def write(self, student: Student, path: Path) -> None:
        _check(student)
        super().write(student, path)

    def sources(self) -> list[Tensor]:
        """Return loud to quiet audio, whose level the file restores."""
        return [level * source for level, source in zip((1, 0.1, 0.01), super().sources(), strict=True)]

    def head_outputs(self, path: Path, sources: Sequence[Tensor], *, padded: bool) -> list[list[Tensor]]:
        """Return the log-probabilities of audio that sherpa-onnx would normalize; the file has one utterance a call."""
        run, _ = self.loaded(path / self.file)
        outputs = [run(F.layer_norm(source, source.shape, eps=EPSILON)[None]) for source in sources]
        return [[log_probs[0]] for [log_probs] in outputs]

    def texts(self, path: Path, sources: Sequence[Tensor]) -> dict[str, list[str]]:
        if importlib.util.find_spec("sherpa_onnx") is None:
            return {}
        import sherpa_onnx

        recognizer = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(str(path / self.file), str(path / TOKENS))
        texts = []
        for source in sources:
            stream = recognizer.create_stream()
            stream.accept_waveform(16_000, source.numpy())
            recognizer.decode_stream(stream)
            texts.append(stream.result.text)
        return {"sherpa-onnx": texts}

    def next_step(self, path: Path) -> str:
        files = ", ".join(repr(str(path / name)) for name in (self.file, TOKENS))
        return f"recognizer = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc({files})"

    def _write(self, student: Student, path: Path) -> None:
        with self.quietly():
            torch.onnx.export(
                _Utterance(student),
                (check_sources()[0][None],),
                path,
                dynamo=False,
                opset_version=OPSET,
                input_names=[SAMPLES],
                output_names=["log_probs"],
                dynamic_axes={SAMPLES: {1: "samples"}, "log_probs": {1: "frames"}},
            )
        complete(path, head_metadata(student, [SAMPLES]))


class _Utterance(nn.Module):
    """One utterance as sherpa-onnx normalizes it."""

    def __init__(self, student: Student):
        super().__init__()
        self.student = InferenceStudent(student, attention_by_blocks)

    def forward(self, samples: Tensor) -> Tensor:
        # Summed, not a size: that would be a number of the example in the file.
        num_samples = torch.ones_like(samples, dtype=torch.long).sum(1)
        if not self.student.normalize:
            lost = 1 - samples.double().square().mean(1, keepdim=True)  # epsilon / (v + epsilon)
            samples = samples * (EPSILON / lost.clamp(min=LEAST)).sqrt().float()
        return self.student.padded(samples, num_samples)[0]


def _check(student: Student) -> None:
    """Raise StarError for a student that sherpa-onnx cannot run."""
    if student.head is None:
        raise StarError(
            f"export: sherpa-onnx runs recognizers, and {student.origin} is an encoder; fine-tune it "
            "(configs/finetune_ctc.yaml)"
        )
    rates = (student.sample_rate, student.model.geometry.downsample_rate)
    if rates != (16_000, 320):
        raise StarError(
            f"export: sherpa-onnx takes audio of 16000 Hz and 320 samples a frame; {student.origin} has {rates[0]} Hz "
            f"and {rates[1]} samples"
        )
    if not student.normalize and (student.config.extractor_mode != "default" or student.config.conv_bias):
        raise StarError(
            f"export: sherpa-onnx brings each utterance to unit variance, which changes what {student.origin} computes "
            "(its convolutions have biases or norms over channels); take --to onnx"
        )
    largest = max("".join(student.head.tokens.pieces).replace(SPACE, "").encode())
    if largest == BYTE_BPE:
        raise StarError(
            f"export: sherpa-onnx would take the tokens of {student.origin} for byte-level subwords, as none is above "
            "U+01BF and one above U+017F; take --to onnx"
        )
