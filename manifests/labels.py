"""Write the label files of fairseq's fine-tuning, one line per line of a manifest: letters, words and subwords.

    python manifests/labels.py DIR/train.tsv DIR/valid.tsv [--text FILE ...] [--subwords N] [--out DIR]

    {split}.ltr    letters, ``|`` after each word  T H E | C A T |        dict.ltr.txt
    {split}.wrd    words                             THE CAT
    {split}.spm    sentencepiece subwords, with --subwords N                dict.spm.txt, spm.model

Dictionaries and subwords come from the first manifest. Transcripts are LibriSpeech's: the ``*.trans.txt`` in each
audio file's folder (the demo corpus has them too), or --text: Kaldi's ``text`` (``utterance words ...``), or a CSV, TSV
or JSON-lines table with a path and a ``text``, ``sentence`` or ``transcription``. Files are matched by their path
or the end of it, down to the name alone, with its extension, another or none; 16 kHz copies of --resample likewise. A
transcript that matches several files is not used: those files are named.

Transcripts are used unchanged, or with --upper in capitals. Files without one are named, and nothing is written;
with --skip-bad and another folder as --out, manifests without those files are written there next to the labels. A
manifest is also copied to --out where that is another folder, so that ``task.data`` is one folder.
"""

import argparse
import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fairseq_star.errors import StarError
from fairseq_star.manifest import ManifestEntry, stream_manifest, write_lines, write_manifest
from manifests.preparing import run_script
from manifests.transcripts import Transcripts

BOUNDARY = "|"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line described above and return the exit status.

    Raises:
        StarError: a file that is missing or malformed, a transcript that label files cannot contain, more subwords than
            the transcripts allow.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", type=Path, nargs="+", metavar="MANIFEST", help="the one to train on first")
    parser.add_argument("--text", type=Path, nargs="+", default=[], metavar="FILE", help="transcripts, not *.trans.txt")
    parser.add_argument("--upper", action="store_true", help="put transcripts in capitals")
    parser.add_argument("--subwords", type=int, default=0, metavar="N", help="size of the sentencepiece vocabulary")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="default: the first manifest's folder")
    parser.add_argument("--skip-bad", action="store_true", help="go without the files that have no transcript")
    options = parser.parse_args(arguments)
    out = options.out or options.manifests[0].parent
    names = [path.stem for path in options.manifests]
    if len(set(names)) < len(names):
        raise StarError(f"{', '.join(names)}: manifests of one name would write the same labels; rename one")
    in_place = any(path.parent.resolve() == out.resolve() for path in options.manifests)
    if options.skip_bad and in_place:
        raise StarError("--skip-bad: manifests lose lines, so give another folder as --out; the old ones stay whole")
    manifests = {path: stream_manifest(path) for path in options.manifests}
    entries = ((path, root, entry) for path, (root, of_one) in manifests.items() for entry in of_one)
    splits = {path.stem: (root, []) for path, (root, _) in manifests.items()}
    num_missing = 0
    for path, entry, text, problem in Transcripts(options.text).of_all(entries):
        text = _tidy(text, entry, options.upper)
        if text:
            splits[path.stem][1].append((entry, text))
        else:
            print(f"{path}: {entry.path} {problem or 'has no transcript'}", file=sys.stderr)
            num_missing += 1
    if num_missing and not options.skip_bad:
        where = ", ".join(map(str, options.text)) or "the *.trans.txt next to them"
        print(f"{num_missing} files have no transcript in {where}; add them, or give --skip-bad", file=sys.stderr)
        return 1
    _write_all(out, splits, options.subwords, copy_manifests=not in_place)
    return 0


def _tidy(text: str, entry: ManifestEntry, upper: bool) -> str:
    """Separate words by single spaces."""
    text = " ".join(text.split())
    if BOUNDARY in text:
        raise StarError(
            f"{entry.path}: its transcript {text!r} contains '|', which separates words in label files; remove it"
        )
    return text.upper() if upper else text


def letters(text: str) -> str:
    """Return ``THE CAT`` as ``T H E | C A T |``."""
    return " ".join(text.replace(" ", BOUNDARY) + BOUNDARY)


def _write_all(out: Path, splits: Mapping[str, tuple[str, list]], subwords: int, copy_manifests: bool) -> None:
    texts = {name: [text for _, text in found] for name, (_, found) in splits.items()}
    train = next(iter(texts))
    kinds = {"wrd": texts, "ltr": {name: [letters(text) for text in of] for name, of in texts.items()}}
    extra: dict[str, Iterable[str]] = {"ltr": ()}
    if subwords:
        pieces, encode = train_subwords(texts[train], subwords, out / "spm.model")
        kinds["spm"] = {name: [" ".join(encode(text)) for text in of] for name, of in texts.items()}
        extra["spm"] = pieces
    for kind, symbols in extra.items():
        known = _write_dictionary(out / f"dict.{kind}.txt", kinds[kind][train], symbols)
        for name, lines in kinds[kind].items():
            unknown = Counter(symbol for line in lines for symbol in line.split() if symbol not in known)
            for symbol, count in unknown.most_common():
                print(f"{name}.{kind}: {symbol!r} ({count} times) is not in {train}.{kind}: <unk>", file=sys.stderr)
    for name, (root, found) in splits.items():
        for kind, labels in kinds.items():
            write_lines(out / f"{name}.{kind}", (line + "\n" for line in labels[name]))
        if copy_manifests:
            write_manifest(out / f"{name}.tsv", root, (entry for entry, _ in found))
        print(f"{out / name}: {len(found)} utterances, labels {', '.join(kinds)}")


def _write_dictionary(path: Path, lines: Iterable[str], symbols: Iterable[str]) -> set[str]:
    """Write fairseq's ``symbol count`` lines, most frequent first; return the symbols."""
    counts = Counter(symbol for line in lines for symbol in line.split())
    counts.update(dict.fromkeys(symbols, 0))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    write_lines(path, (f"{symbol} {max(count, 1)}\n" for symbol, count in ranked))
    return set(counts)


def train_subwords(texts: Sequence[str], size: int, path: Path):
    """Train a unigram sentencepiece model and write it.

    Returns:
        Its pieces without the special ones, and a function of a text that returns its pieces.

    Raises:
        StarError: sentencepiece is missing, or ``size`` does not fit the texts.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise StarError("--subwords needs sentencepiece: pip install 'fairseq-star[finetune]'") from error
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, vocab_size=size, character_coverage=1.0,
            normalization_rule_name="identity", bos_id=-1, eos_id=-1, num_threads=1, minloglevel=2,
        )  # fmt: skip
    except (RuntimeError, OSError) as error:
        # "... set it to a value <= 491." or "... smaller than required_chars. 20 vs 28. ..."
        most, least = re.search(r"<= (\d+)", str(error)), re.search(r"required_chars\. \d+ vs (\d+)", str(error))
        hint = f"at least {least[1]}" if least else f"at most {most[1]}" if most else f"another ({error})"
        raise StarError(f"--subwords {size} does not fit these transcripts; choose {hint}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    special = {index for index in range(len(pieces)) if processor.is_unknown(index) or processor.is_control(index)}
    usual = [piece for index, piece in enumerate(pieces) if index not in special]
    return usual, lambda text: processor.encode(text, out_type=str)


if __name__ == "__main__":
    run_script(main)
