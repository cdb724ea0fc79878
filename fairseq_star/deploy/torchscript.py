"""TorchScript: one file that ``torch.jit.load`` runs without any Python code, of C++ or Python; int8 on request.

    model = torch.jit.load("student.ts")
    last_hidden_state, hidden_states, frame_lengths = model(source, num_samples)     # see inference_module.py

int8 is torch's dynamic quantization of all linear layers: a third of the size, less exact, for CPUs only.
"""

import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Iterator, Sequence

import torch
from torch import Tensor, nn

from fairseq_star.deploy.inference_module import OUTPUTS, InferenceStudent, head_metadata
from fairseq_star.errors import StarError
from fairseq_star.formats.head import Head
from fairseq_star.formats.student import Student
from fairseq_star.formats.target import Target, batches, check_sources, model_file, valid_frames

FILE = "model.ts"  # in the folder of a fine-tuned student
INT8_COSINE = 0.98  # least mean cosine of a state's frames with the student's


class TorchScript(Target):
    """A traced :class:`InferenceStudent`.

    With ``int8`` the difference is not the largest one but 1 minus the frames' mean cosine, of each state.
    """

    title = "TorchScript program"
    padded_group_norm = False
    heads: ClassVar = (Head,)

    def __init__(self, int8: bool = False):
        self.int8 = int8
        if int8:
            self.title, self.tolerance, self.measure = "TorchScript program (int8)", 1 - INT8_COSINE, "1 - cosine"

    def write(self, student: Student, path: Path) -> None:
        with _quiet():
            model = InferenceStudent(student)
            if self.int8:
                model = quantize(model)
            program = torch.jit.freeze(torch.jit.script(_Program(model).eval()))
            torch.jit.save(program, model_file(path, student.head, FILE), _extra_files=head_metadata(student))

    @torch.no_grad()
    def hidden_states(self, path: Path, sources: Sequence[Tensor], *, padded: bool) -> list[list[Tensor]]:
        with _quiet():
            model = torch.jit.load(path)
        utterances = []
        for source, num_samples in batches(sources, padded=padded, normalize=False):
            last, states, frame_lengths = model(source, num_samples if padded else None)
            utterances += valid_frames([*states[:-1], last], frame_lengths)
        return utterances

    @torch.no_grad()
    def head_outputs(self, path: Path, sources: Sequence[Tensor], *, padded: bool) -> list[list[Tensor]]:
        with _quiet():
            model = torch.jit.load(path / FILE)
        utterances = []
        for source, num_samples in batches(sources, padded=padded, normalize=False):
            *outputs, frame_lengths = model(source, num_samples if padded else None)
            utterances += self.head.split(outputs, frame_lengths)
        return utterances

    def difference(self, got: Tensor, expected: Tensor) -> float:
        if not self.int8:
            return super().difference(got, expected)
        return 1 - float(self.cosines(got, expected).mean())

    def next_step(self, path: Path) -> str:
        file = path if self.head is None else path / FILE
        names = OUTPUTS if self.head is None else self.head.output_names
        return f"model = torch.jit.load({str(file)!r})\n{', '.join(names)} = model(source, num_samples)"


class _Program(nn.Module):
    """Two traces of a student: with padding and without."""

    def __init__(self, model: InferenceStudent):
        super().__init__()
        source, num_samples = next(batches(check_sources(), padded=True, normalize=False))
        inputs = {"padded": (source, num_samples), "whole": (source,)}
        self.program = torch.jit.trace_module(model, inputs, check_trace=False)

    def forward(self, source: Tensor, num_samples: Tensor | None = None):  # the compiler finds out what is returned
        if num_samples is not None:
            return self.program.padded(source, num_samples)
        return self.program.whole(source)


def quantize(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` whose linear layers compute in int8, activations quantized at run time.

    Raises:
        StarError: this machine's torch has no quantized kernels.
    """
    if torch.backends.quantized.engine == "none":
        raise StarError("--int8: torch has no quantized kernels on this machine; export without --int8")
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's deprecation warnings: what replaces TorchScript and its quantization still needs Python."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # of sizes that are the student's own
        yield
