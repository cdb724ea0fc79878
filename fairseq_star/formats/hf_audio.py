"""What audio a HuggingFace folder's model was trained on, from the file transformers would read it from.

transformers 5 writes the audio format into ``processor_config.json``, nested under ``feature_extractor``; before, it
had a file of its own, ``preprocessor_config.json``. Where both say it, the nested one counts, as in transformers.

Source: transformers, ``feature_extraction_utils.py`` (``get_feature_extractor_dict``).
"""

import logging
import os

from fairseq_star.errors import StarError
from fairseq_star.formats.fields import Section
from fairseq_star.formats.hf_folder import PREPROCESSOR, PROCESSOR, read_json
from fairseq_star.manifest import SAMPLE_RATE

logger = logging.getLogger(__name__)

NESTED = ("feature_extractor", "audio_processor")
# The one kind that hands waveforms on; other kinds make spectrograms, or have other defaults.
EXTRACTOR_TYPE = "Wav2Vec2FeatureExtractor"


def audio_format(folder: str, option: str, *, layer_norm_extractor: bool) -> tuple[int, bool]:
    """Sample rate in Hz, and whether audio is brought to zero mean and unit variance (``do_normalize``).

    Where the folder does not say: 16 kHz, normalized for layer-norm extractors, whose models were all trained so, and
    not for group-norm ones, to which it makes no difference, because a group norm over time removes scale and offset.

    Raises:
        StarError: a file is unreadable, a value cannot be, or the audio is not heard as a waveform.
    """
    audio = _section(folder, option)
    if audio is None:
        logger.warning(
            f"{folder} has no {PREPROCESSOR} and no {PROCESSOR} that says its audio format: taking {SAMPLE_RATE} Hz, "
            f"normalize={layer_norm_extractor} after its extractor's kind"
        )
        return SAMPLE_RATE, layer_norm_extractor
    kind = audio.values.get("feature_extractor_type")
    if kind not in (None, EXTRACTOR_TYPE):
        raise StarError(
            f"{audio.name}: its audio goes through a {str(kind)[:60]!a}, where a teacher hears waveforms "
            f"({EXTRACTOR_TYPE}); take another teacher"
        )
    # What transformers' Wav2Vec2FeatureExtractor does unless told otherwise.
    return audio.whole("sampling_rate", SAMPLE_RATE, at_most=1_000_000), audio.flag("do_normalize", True)


def _section(folder: str, option: str) -> Section | None:
    """The folder's settings of its feature extractor; None where it has none."""
    path = os.path.join(folder, PROCESSOR)
    if os.path.isfile(path):
        processor = read_json(path, option)
        nested = next((processor[key] for key in NESTED if key in processor), None)
        if isinstance(nested, dict):
            return Section(nested, f"{option}: {path}")
        if nested is not None:
            raise StarError(
                f"{option}: {path} holds a {type(nested).__name__} where its feature extractor's settings are "
                "needed; download it again"
            )
    path = os.path.join(folder, PREPROCESSOR)
    return Section(read_json(path, option), f"{option}: {path}") if os.path.isfile(path) else None
