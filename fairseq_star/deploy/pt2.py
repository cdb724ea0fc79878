"""``.pt2``: a program of ``torch.export``, which takes TorchScript's place from torch 2.11 on.

    program = torch.export.load("student.pt2").module(check_guards=False)      # torch before 2.9: .module()
    last_hidden_state, hidden_states, frame_lengths = program(source, num_samples)     # see inference_module.py

For a streaming student it is one chunk and its state: ``deploy/streaming/step.py``. Source has 720 samples or more;
shorter audio is padded, with its length in ``num_samples``. torch's guards are off because they refuse a batch of one,
which the program computes correctly: every written file is compared on one.
"""

import inspect
from pathlib import Path

import torch
from torch import Tensor

from fairseq_star.deploy.programs import STREAM, ProgramTarget, Run, program_of
from fairseq_star.formats.head import METADATA
from fairseq_star.formats.student import Student
from fairseq_star.formats.target import model_file


class Pt2(ProgramTarget):
    """The program of an :class:`InferenceStudent`, or of a streaming student's :class:`StreamStep`."""

    title = "torch.export program"
    file = "model.pt2"

    def write(self, student: Student, path: Path) -> None:
        program = program_of(student)
        with model_file(path, student.head, self.file).open("wb") as file:  # a path must end in .pt2
            torch.export.save(program.exported, file, extra_files=program.metadata)

    @staticmethod
    def load(path: Path) -> tuple[Run, dict[str, str]]:
        """Load the program and its metadata. Load trusted files only: torch runs the code they hold."""
        extra = {STREAM: "", METADATA: ""}
        with path.open("rb") as file:
            program = torch.export.load(file, extra_files=extra)
        guarded = "check_guards" in inspect.signature(program.module).parameters
        module = program.module(check_guards=False) if guarded else program.module()

        @torch.no_grad()
        def run(*inputs: Tensor) -> list[Tensor]:
            return list(module(*inputs))

        return run, {key: value for key, value in extra.items() if value}

    def next_step(self, path: Path) -> str:
        return self.run_lines(
            path, "program = torch.export.load({}).module(check_guards=False)", "program(source, num_samples)"
        )
