"""Label files: one line for each utterance of the manifest of the same name, ``{split}.keyword`` by ``{split}.tsv``."""

from pathlib import Path

from fairseq_star.errors import StarError


def read_label_lines(path: Path, expected: int, kind: str, *, otherwise: str = "") -> list[str]:
    """Return the labels of a split, without blanks at their ends.

    Args:
        path: of the label file.
        expected: utterances of the manifest.
        kind: of the labels, for messages, such as ``keyword``.
        otherwise: further advice where the file is missing.

    Raises:
        StarError: it cannot be read, has another number of lines, or a line without a label.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise StarError(
            f"{path}: cannot read the {kind} labels ({error.strerror}); write a line for each utterance of the "
            f"manifest{otherwise} (manifests/demo/corpus.py writes the demo corpus's)"
        ) from error
    except UnicodeDecodeError as error:
        raise StarError(f"{path}: is not UTF-8 text; write the labels again") from error
    if len(lines) != expected:
        raise StarError(
            f"{path}: {len(lines)} lines, but the manifest next to it has {expected} utterances; write one for each"
        )
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise StarError(f"{path}:{number}: no label; write one, or take the utterance out of the manifest")
    return [line.strip() for line in lines]
