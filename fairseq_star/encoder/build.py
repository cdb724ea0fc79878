"""The encoder that a config describes."""

from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.encoder.modules import SpeechEncoder


def build_encoder(config: EncoderConfig, **options) -> SpeechEncoder:
    """Build an encoder with random weights, WavLM's where ``config`` says so; ``options`` as of ``SpeechEncoder``."""
    if config.relative_position is None:
        return SpeechEncoder(config, **options)
    # Not at the top: torchaudio takes a second to import, and WavLM alone needs it.
    from fairseq_star.encoder.wavlm import WavLMEncoder

    return WavLMEncoder(config, **options)
