"""ONNX: one file for onnxruntime and others, batch and length dynamic.

    session = onnxruntime.InferenceSession("student.onnx")
    last_hidden_state, hidden_states, frame_lengths = session.run(
        None, {"source": source, "num_samples": num_samples})       # float32 B x samples, int64 B

What they are: ``inference_module.py``.

Written by torch's TorchScript-based exporter: it is in every torch from 2.6 on, needs no package but onnx, and takes
seconds where the newer one takes minutes.
"""

import warnings
from pathlib import Path
from typing import ClassVar, Sequence

import torch
from torch import Tensor

from fairseq_star.formats.inference_module import OUTPUTS, InferenceStudent
from fairseq_star.formats.student import Student
from fairseq_star.formats.target import Target, batches, check_sources, valid_frames
from fairseq_star.formats.torchaudio import INSTALL

OPSET = 17  # the first with LayerNormalization; torch's TorchScript-based exporter knows up to 20
AXES = {
    "source": {0: "batch", 1: "samples"},
    "num_samples": {0: "batch"},
    "last_hidden_state": {0: "batch", 1: "frames"},
    "hidden_states": {1: "batch", 2: "frames"},
    "frame_lengths": {0: "batch"},
}
_EXTRA = "pip install 'fairseq-star[onnx]'"


class Onnx(Target):
    """The graph of a :class:`InferenceStudent`, opset 17: ``source`` and ``num_samples`` in, ``OUTPUTS`` out."""

    title = "ONNX file"
    requires: ClassVar = {"torchaudio": INSTALL, "onnx": _EXTRA, "onnxruntime": _EXTRA}
    tolerance = 5e-5
    padded_group_norm = False

    def write(self, student: Student, path: Path) -> None:
        source, num_samples = next(batches(check_sources(), padded=True, normalize=False))
        with warnings.catch_warnings(), torch.no_grad():
            # It is deprecated, and it warns of torchaudio's checks of shapes, which hold for all shapes here.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                InferenceStudent(student),
                (source, num_samples),
                path,
                dynamo=False,
                opset_version=OPSET,
                input_names=["source", "num_samples"],
                output_names=list(OUTPUTS),
                dynamic_axes=AXES,
            )

    def hidden_states(self, path: Path, sources: Sequence[Tensor], *, padded: bool) -> list[list[Tensor]]:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        utterances = []
        for source, num_samples in batches(sources, padded=padded, normalize=False):
            inputs = {"source": source.numpy(), "num_samples": num_samples.numpy()}
            last, states, frame_lengths = map(torch.from_numpy, session.run(list(OUTPUTS), inputs))
            utterances += valid_frames([*states[:-1], last], frame_lengths)
        return utterances

    def next_step(self, path: Path) -> str:
        return (
            f"session = onnxruntime.InferenceSession({str(path)!r})\n"
            'session.run(None, {"source": source, "num_samples": num_samples})'
        )
