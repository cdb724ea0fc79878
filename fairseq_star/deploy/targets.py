"""The table of export targets: those that hold weights (``fairseq_star.formats``) and those that are programs."""

from fairseq_star.errors import StarError
from fairseq_star.formats.target import Target, need
from fairseq_star.runtime.names import TARGETS


def load_target(name: str, *, check: bool = True) -> type[Target]:
    """Return the class of an export target.

    Args:
        name: one of :data:`fairseq_star.runtime.names.TARGETS`.
        check: whether the library that loads the export must be installed.

    Raises:
        StarError: no such target, or its library is not installed.
    """
    if name not in TARGETS:
        raise StarError(f"--to {name} is unknown; it is one of {', '.join(TARGETS)}")
    target = _import_class(name)
    for library, install in target.requires.items() if check else ():
        need(library, f"--to {name}", install)
    return target


def _import_class(name: str) -> type[Target]:
    # Imported one by one: their libraries are optional.
    match name:
        case "s3prl":
            from fairseq_star.formats.s3prl import S3prl as Found
        case "fairseq":
            from fairseq_star.formats.fairseq import Fairseq as Found
        case "huggingface":
            from fairseq_star.formats.huggingface import HuggingFace as Found
        case "torchaudio":
            from fairseq_star.formats.torchaudio import Torchaudio as Found
        case "torchscript":
            from fairseq_star.deploy.torchscript import TorchScript as Found
        case "onnx":
            from fairseq_star.deploy.onnx import Onnx as Found
        case "sherpa-onnx":
            from fairseq_star.deploy.sherpa_onnx import SherpaOnnx as Found
        case "pt2":
            from fairseq_star.deploy.pt2 import Pt2 as Found
    return Found
