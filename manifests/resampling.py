"""Audio of any rate and number of channels to 16 kHz mono FLAC, in bounded memory."""

import errno
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fairseq_star.audio.file import open_to_the_end, probe_audio
from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE, ManifestEntry
from fairseq_star.runtime.files import replacing
from fairseq_star.runtime.torchaudio_import import import_torchaudio
from manifests.copies import Source, copied_samples, copy_path

SECONDS = 20
"""Of a block: memory does not grow with a file's length."""
WIDEST_STEP = 2000
"""Of the reduced input rate, 441 for 44.1 kHz: torchaudio's filter bank grows with its product with the output's."""


def convert_into(folder: Path, source: str, name: str) -> ManifestEntry:
    """Write ``source`` as 16 kHz mono FLAC below ``folder``, unless there is an up-to-date copy. A copy gets its name
    only when it is complete.

    Args:
        folder: of all copies.
        source: an audio file or an archive entry.
        name: its path below the source's root, or in its archive; determines the copy's (see ``copies.copy_path``).

    Returns:
        The copy's absolute path and length.

    Raises:
        StarError: ``source`` cannot be read to its end, is empty, is of a rate that has no step with 16 kHz, changes
            meanwhile, or has a name that the copies' file system rejects.
    """
    found = Source.look(source, name)
    target = copy_path(folder, found, name)
    if (num_samples := copied_samples(target, found)) is not None:
        return ManifestEntry(str(target), num_samples)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            num_samples = _write(source, str(temporary), found.comment())
            if Source.look(source, name) != found:
                raise StarError(f"{source}: was changed while it was converted; run this again")
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
            raise StarError(f"{source}: cannot be copied to {target} ({error.strerror}); rename it") from error
        raise
    return ManifestEntry(str(target), num_samples)


def _write(source: str, target: str, comment: str) -> int:
    import soundfile

    with (
        open_to_the_end(source) as (audio, num_samples),
        soundfile.SoundFile(target, "w", SAMPLE_RATE, channels=1, subtype="PCM_16", format="FLAC") as out,
    ):
        out.comment = comment
        for block in resampled(audio, source, num_samples):
            try:
                out.write(block)
            except soundfile.SoundFileError as error:
                raise OSError(f"{target}: cannot be written ({error}); is the disk full?") from error
    return probe_audio(target)


def resampled(audio, source: str, num_samples: int | None) -> Iterator[np.ndarray]:
    """Yield blocks of an open ``soundfile.SoundFile`` as 16 kHz mono float32. Concatenated they equal
    ``torchaudio.functional.resample`` of the whole: each block is filtered with the adjacent samples, as far as the
    filter reaches.

    Args:
        audio: at its start.
        source: its name, for messages.
        num_samples: its length; None if unknown: read to the end.

    Raises:
        StarError: the file cannot be decoded, ends too early or has no samples, or its rate has no step with 16 kHz.
    """
    import soundfile
    import torch

    torchaudio = import_torchaudio()
    step_in, step_out = (rate // math.gcd(audio.samplerate, SAMPLE_RATE) for rate in (audio.samplerate, SAMPLE_RATE))
    if step_in > WIDEST_STEP:
        raise StarError(f"{source}: {audio.samplerate} Hz has no step with {SAMPLE_RATE} Hz; resample it with sox")
    # torchaudio's filter reaches lowpass_filter_width (6) zero crossings of the lower rate, times rolloff (0.99).
    reach = step_in * (math.ceil(6 / (0.99 * min(step_in, step_out))) + 2)
    size = step_in * max(1, int(SECONDS * audio.samplerate) // step_in)
    total = math.inf if num_samples is None else num_samples
    taken, held = 0, torch.zeros(0)
    start = 0  # of `held`, in the input
    done = 0  # of the input
    while done < total:
        wanted = min(done + size + reach, total) - taken
        try:
            samples = audio.read(wanted, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise StarError(f"{source}: cannot be read as audio or is cut short ({error}); restore it") from error
        taken += len(samples)
        if len(samples) != wanted:
            if num_samples is not None:
                raise StarError(f"{source}: is cut short: holds {taken} of the {total} samples it states; restore it")
            total = taken
            if not total:
                break
        held = torch.cat([held, torch.from_numpy(samples.mean(axis=1))])
        end = min(done + size, total)
        block = torchaudio.functional.resample(held, step_in, step_out)
        first = (done - start) // step_in * step_out
        last = math.ceil((end - start) * step_out / step_in)
        yield block[first:last].numpy()
        done = end
        cut = max(done - reach, 0) - start
        held, start = held[cut:], start + cut
    if not done:
        raise StarError(f"{source}: holds no samples; remove it")
