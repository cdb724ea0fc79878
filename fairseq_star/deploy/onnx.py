"""ONNX: one file for onnxruntime and others, batch and length dynamic; of a streaming student one chunk and its state.

    session = onnxruntime.InferenceSession("student.onnx")
    last_hidden_state, hidden_states, frame_lengths = session.run(
        None, {"source": source, "num_samples": num_samples})       # float32 B x samples, int64 B

Inputs and outputs: ``inference_module.py``; of a streaming student ``deploy/streaming/step.py`` and docs/streaming.md.
The folder of a fine-tuned student holds ``model.onnx``, whose outputs are its head's, and the labels; docs/product.md.

A student of whole utterances is written by torch's TorchScript-based exporter: it is in every torch from 2.6 on, needs
no package but onnx, and takes seconds. ``dynamo`` takes torch's present one, which a streaming student needs.
"""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fairseq_star.deploy.attention import Attend, attention_by_blocks
from fairseq_star.deploy.calibration import Calibration
from fairseq_star.deploy.inference_module import INPUTS, InferenceStudent, head_metadata, output_names
from fairseq_star.deploy.onnx_asr import onnx_asr_texts
from fairseq_star.deploy.onnx_quantized import only_errors, to_int4, to_int8, to_static_int8
from fairseq_star.deploy.programs import STREAM, STREAM_INPUTS, ProgramTarget, Run, program_of, streams_of
from fairseq_star.errors import StarError
from fairseq_star.formats.ctc import CtcHead
from fairseq_star.formats.head import FRAME_LENGTHS
from fairseq_star.formats.student import Student
from fairseq_star.formats.target import batches, check_sources, model_file, need

OPSET = 17  # the first with LayerNormalization; torch's TorchScript-based exporter supports up to 20
AXES = {
    "source": {0: "batch", 1: "samples"},
    "num_samples": {0: "batch"},
    "last_hidden_state": {0: "batch", 1: "frames"},
    "hidden_states": {1: "batch", 2: "frames"},
    FRAME_LENGTHS: {0: "batch"},
}
QUANTIZED_MARGIN = 0.05  # as `text_tolerance`: another onnxruntime rounds elsewhere
COSINE, WORST = 0.99, 0.9  # least cosine with the student's frames, of each state: mean, and worst frame
_EXTRA = "pip install 'fairseq-star[onnx]'"


class Onnx(ProgramTarget):
    """The graph of an :class:`InferenceStudent`, ``source`` and ``num_samples`` in, ``OUTPUTS`` out; of a streaming
    student that of a :class:`StreamStep`.

    With ``int8`` or ``int4`` the difference is 1 minus the frames' mean cosine, of each state, and the worst frame's;
    with ``calibration`` it is measured on held-out speech of that manifest.

    Raises:
        StarError: options that contradict each other.
    """

    title, file = "ONNX file", "model.onnx"
    requires: ClassVar = {"onnx": _EXTRA, "onnxruntime": _EXTRA}
    tolerance = 5e-5

    def __init__(self, dynamo: bool = False, int8: bool = False, int4: bool = False, calibration: str | None = None):
        super().__init__()
        if int8 and int4:
            raise StarError("--int8 and --int4 are two ways of storing the same weights; give one of them")
        if calibration and not int8:
            raise StarError("--calibration is of --int8; give that too, or leave it out")
        self.dynamo, self.int8, self.int4, self.calibration = dynamo, int8, int4, calibration
        self._speech: Calibration | None = None
        if int8 or int4:
            ranges = ", fixed ranges" if calibration else ""
            self.title, self.tolerance = f"ONNX file ({'int8' if int8 else 'int4'}{ranges})", 1 - COSINE
            self.measure, self.text_tolerance = "1 - cosine (or a tenth of the worst frame's)", QUANTIZED_MARGIN
            self.remedy = "these weights lose too much in so few bits; " + (
                "leave --calibration out" if calibration else "take --int8" if int4 else "leave --int8 out"
            )

    def write(self, student: Student, path: Path) -> None:
        self._write_file(student, model_file(path, student.head, self.file))

    def _write_file(self, student: Student, path: Path) -> None:
        if not (self.int8 or self.int4):
            self._write(student, path)
            return
        self._speech = Calibration.read(self.calibration, student) if self.calibration else None
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "student.onnx"
            self._write(student, whole)
            if self.int4:
                to_int4(whole, path)
            elif self._speech is None:
                to_int8(whole, path)
            else:
                to_static_int8(whole, path, self._given(whole, student, self._speech.calibration), self._speech.origin)

    def _given(self, path: Path, student: Student, utterances: list[Tensor]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the inputs of the file at ``path`` for the utterances one by one, chunk by chunk for streaming ones."""
        run, metadata = self.load(path)
        settings = metadata.get(STREAM)
        for source in utterances:
            if settings is None:
                yield {INPUTS[0]: source[None].numpy(), INPUTS[1]: np.array([len(source)])}
                continue
            taken = []

            def listening(*inputs: Tensor, taken: list = taken) -> list[Tensor]:
                taken.append(dict(zip(STREAM_INPUTS, (value.numpy().copy() for value in inputs), strict=True)))
                return run(*inputs)

            whole = student.model.geometry.num_frames(len(source))
            live = streams_of(listening, settings, chunk_frames=student.model.chunk_frames or whole)
            live.feed([source])
            live.flush()
            yield from taken

    def sources(self) -> list[Tensor]:
        return self._speech.held_out if self._speech else super().sources()

    def difference(self, got: Tensor, expected: Tensor) -> float:
        if not (self.int8 or self.int4):
            return super().difference(got, expected)
        apart = 1 - self.cosines(got, expected)
        return float(torch.maximum(apart.mean(), apart.max() * (1 - COSINE) / (1 - WORST)))

    @staticmethod
    @contextmanager
    def quietly() -> Iterator[None]:
        """Run an exporter: the older is deprecated, and warns of checks of shapes, which hold for all shapes here."""
        with warnings.catch_warnings(), only_errors(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield

    def _write(self, student: Student, path: Path) -> None:
        with self.quietly():
            if self.dynamo or student.config.chunk_frames:
                _write_by_dynamo(student, path)
            else:
                write_whole(student, path)

    @staticmethod
    def load(path: Path, num_threads: int = 0) -> tuple[Run, dict[str, str]]:
        """Load the graph in onnxruntime, on ``num_threads`` (0: all cores), and its metadata."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]

        def run(*inputs: Tensor) -> list[Tensor]:
            outputs = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
            return [torch.from_numpy(value) for value in outputs]

        return run, session.get_modelmeta().custom_metadata_map

    def texts(self, path: Path, sources: Sequence[Tensor]) -> dict[str, list[str]]:
        if not isinstance(self.head, CtcHead):
            return {}
        # A layer's range is taken from the whole batch where it is rounded, so that neighbours tell a little.
        return onnx_asr_texts(path, sources, in_batches=not (self.int8 or self.int4))

    def next_step(self, path: Path) -> str:
        return self.run_lines(
            path,
            "session = onnxruntime.InferenceSession({})",
            'session.run(None, {"source": source, "num_samples": num_samples})',
        )


def _write_by_dynamo(student: Student, path: Path) -> None:
    need("onnxscript", "--to onnx, for a streaming student or with --dynamo,", _EXTRA)
    program = program_of(student, products=True)
    try:
        written = torch.onnx.export(
            program.exported, dynamo=True, verbose=False, input_names=program.inputs, output_names=program.outputs
        )
    except torch.onnx.OnnxExporterError as error:
        raise StarError(
            f"{path}: the exporter of torch {torch.__version__} cannot write this student as ONNX "
            f"({str(error).strip().splitlines()[0]}); use a newer torch (with 2.11 it is tested), or --to pt2"
        ) from error
    written.model.metadata_props.update(program.metadata)
    written.save(path)


def write_whole(student: Student, path: Path, attend: Attend = attention_by_blocks) -> None:
    """Write a student of whole utterances, in float and unchecked, by torch's TorchScript-based exporter.

    Args:
        attend: how attention is computed.
    """
    source, num_samples = next(batches(check_sources(), padded=True, normalize=False))
    torch.onnx.export(
        InferenceStudent(student, attend),
        (source, num_samples),
        path,
        dynamo=False,
        opset_version=OPSET,
        input_names=list(INPUTS),
        output_names=list(output_names(student)),
        dynamic_axes=AXES | ({} if student.head is None else student.head.outputs),
    )
    complete(path, head_metadata(student))


def complete(path: Path, metadata: dict[str, str]) -> None:
    """Add metadata, and remove the example's sizes, which the exporter writes for loop variables and onnxruntime then
    enforces."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata)
    for node in model.graph.node:
        if node.op_type == "Loop":
            [body] = (attribute.g for attribute in node.attribute if attribute.name == "body")
            for value in (*body.input[2:], *body.output[1:]):  # without the iteration number and the condition
                for size in value.type.tensor_type.shape.dim:
                    size.Clear()
    onnx.save(model, path)
