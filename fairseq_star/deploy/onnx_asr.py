"""A fine-tuned student's ONNX folder in onnx-asr, with its resampling, voice activity detection and time stamps.

    from fairseq_star.deploy.onnx_asr import load_recognizer
    load_recognizer("FOLDER").recognize("speech.wav")

onnx-asr 0.12 runs CTC models on mel features that it computes itself (NeMo's, GigaAM's), or on chunks of 8 kHz audio
(T-one); none of its layouts gives a model of 16 kHz audio the samples. Its own base class and its own "identity"
preprocessor do: :func:`load_recognizer` is all that they lack. It needs onnx-asr alone, nothing else of this package.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any, Sequence

BATCH = 8


def load_recognizer(folder: str | Path, **options: Any) -> Any:
    """Return onnx-asr's adapter (``recognize``, ``with_vad``, ``with_timestamps``) for an exported folder.

    Args:
        folder: what ``fairseq-star export --to onnx`` wrote of a fine-tuned student (16 kHz, frames of 20 ms).
        options: of onnxruntime's ``InferenceSession``: ``sess_options``, ``providers``, ``provider_options``.
    """
    import onnxruntime
    from onnx_asr.adapters import TextResultsAsrAdapter
    from onnx_asr.asr import _AsrWithCtcDecoding
    from onnx_asr.preprocessors.preprocessor import IdentityPreprocessor
    from onnx_asr.preprocessors.resampler import Resampler

    class HubertCtc(_AsrWithCtcDecoding):
        _preprocessor_name, _subsampling_factor = "identity", 2  # frames of 20 ms, in steps of 10 ms
        DECODE_SPACE_PATTERN = re.compile(r"\A\s|(\s)")  # its own also takes the space before 'TIS

        @staticmethod
        def _get_model_files(quantization: str | None = None) -> dict[str, str]:
            return {"model": "model.onnx", "vocab": "tokens.txt"}

        def _encode(self, features: Any, features_lens: Any) -> tuple[Any, Any]:
            return session.run(None, {"source": features, "num_samples": features_lens})

    options = {"providers": ["CPUExecutionProvider"], **options}
    files = {key: Path(folder) / name for key, name in HubertCtc._get_model_files().items()}
    session = onnxruntime.InferenceSession(files.pop("model"), **options)
    recognizer = HubertCtc(files, lambda name: IdentityPreprocessor(), options)
    return TextResultsAsrAdapter(recognizer, Resampler(16_000, options))


def onnx_asr_texts(folder: Path, sources: Sequence[Any], *, in_batches: bool) -> dict[str, list[str]]:
    """Return onnx-asr's texts of utterances (1-D, float32 tensors), if it is installed.

    Args:
        in_batches: also of :data:`BATCH` at a time.
    """
    if importlib.util.find_spec("onnx_asr") is None:
        return {}
    recognizer = load_recognizer(folder)
    waveforms = [source.numpy() for source in sources]
    texts = {"onnx-asr": [recognizer.recognize(waveform) for waveform in waveforms]}
    if in_batches:
        batches = (waveforms[start : start + BATCH] for start in range(0, len(waveforms), BATCH))
        texts["onnx-asr's batches"] = [text for batch in batches for text in recognizer.recognize(batch)]
    return texts
