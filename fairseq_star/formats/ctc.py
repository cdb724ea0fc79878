"""The head that fairseq's ``hubert_ctc`` is fine-tuned with: a linear layer to the log-probabilities of tokens.

fairseq's dictionary gives the tokens their numbers: ``<s>``, which is CTC's blank, ``<pad>``, ``</s>`` and ``<unk>``,
then letters, subwords or phones. What separates words depends on the kind (``criterion.post_process``): ``|`` after
each word of letters, ``▁`` before each word of subwords; other labels, such as phones, are words themselves.

Sources: fairseq's ``models/hubert/hubert_asr.py``, ``criterions/ctc.py``, ``data/{dictionary,data_utils}.py``.
"""

import os
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, ClassVar, Iterable, Mapping, Sequence

import torch
from fairseq.data.dictionary import Dictionary
from fairseq.models.hubert.hubert_asr import HubertCtc
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_star.errors import StarError
from fairseq_star.formats.building import misfit
from fairseq_star.formats.config import plain, sections
from fairseq_star.formats.head import Head

TOKENS, DICTIONARY = "tokens.txt", "--dictionary"
PROJECTION = "w2v_encoder.proj."  # keys of the linear layer in a fine-tuned checkpoint
BLANK = "<s>"  # in fairseq's dictionary; `task.blank_symbol` of every fine-tuning task
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # sentencepiece's mark at the start of a word, which runtimes read as a space
LETTER, SENTENCEPIECE, NONE = (
    "letter",
    "sentencepiece",
    "none",
)  # kinds of tokens, as fairseq's `post_process` names them
BOUNDARY = "|"  # a letter's: the end of a word


@dataclass(frozen=True)
class Tokens:
    """The tokens of a CTC head in the order of its outputs, and how they make a text.

    >>> tokens = Tokens(("<s>", "<pad>", "</s>", "<unk>", "|", "A", "B"), "letter")
    >>> tokens.text([0, 5, 5, 0, 5, 4, 4, 6, 0])  # of each frame
    'AA B'
    """

    symbols: tuple[str, ...]
    post_process: str  # LETTER, SENTENCEPIECE or NONE
    blank: int = 0
    silent: tuple[int, ...] = (0, 2)  # tokens that fairseq leaves out of a text: <s> and </s>

    @property
    def pieces(self) -> list[str]:
        """The tokens with each space between words as :data:`SPACE`, so that they need only be joined."""
        if self.post_process == NONE:
            special = {self.blank, *self.silent}
            return [symbol if number in special else SPACE + symbol for number, symbol in enumerate(self.symbols)]
        return [symbol.replace(BOUNDARY, SPACE) if self.post_process == LETTER else symbol for symbol in self.symbols]

    def text(self, best: Iterable[int]) -> str:
        """Return the text of the best token of each frame: repeats and blanks removed, words separated by one space."""
        pieces = self.pieces
        runs = (token for token, _ in groupby(best))
        said = "".join(pieces[token] for token in runs if token != self.blank and token not in self.silent)
        return " ".join(said.replace(SPACE, " ").split())

    def greedy(self, log_probs: Tensor) -> str:
        """Return the text of the most probable token of each frame; ``log_probs`` is frames x tokens."""
        return self.text(log_probs.argmax(-1).tolist())

    def lines(self, blank: str = "<blk>") -> str:
        """Return the lines ``token number`` that icefall's tools, sherpa-onnx and onnx-asr read as ``tokens.txt``."""
        named = {self.blank: blank}
        return "".join(f"{named.get(number, piece)} {number}\n" for number, piece in enumerate(self.pieces))


class CtcHead(Head):
    """Log-probabilities of tokens, frame by frame, of the last layer's output.

    Args:
        weight: tokens x D.
        bias: tokens.
    """

    kind, title = "ctc", "log-probabilities"
    outputs: ClassVar = {"log_probs": {0: "batch", 1: "frames"}}

    def __init__(self, weight: Tensor, bias: Tensor, tokens: Tokens):
        super().__init__()
        self.tokens = tokens
        with torch.random.fork_rng(devices=[]):
            self.proj = nn.Linear(weight.size(1), weight.size(0))
        self.proj.load_state_dict({"weight": weight, "bias": bias})
        self.requires_grad_(False).eval()

    def forward(self, states: Sequence[Tensor], frame_lengths: Tensor) -> tuple[Tensor]:
        """Return the log-probabilities, B x T x tokens; those of padded frames have no meaning."""
        return (torch.log_softmax(self.proj(states[-1]), dim=-1),)

    def split(self, outputs: Sequence[Tensor], frame_lengths: Tensor) -> list[list[Tensor]]:
        """Return the n_b x tokens log-probabilities of each utterance."""
        return [[outputs[0][number, :length]] for number, length in enumerate(frame_lengths.tolist())]

    def text(self, outputs: Sequence[Tensor]) -> str:
        """Return the transcript: the most probable token of each frame."""
        return self.tokens.greedy(outputs[0])

    def margin(self, outputs: Sequence[Tensor]) -> float:
        """Return half the smallest distance of any frame's two best tokens."""
        if not len(outputs[0]):
            return float("inf")
        first, second = outputs[0].topk(2, dim=-1).values.unbind(-1)
        return float((first - second).min()) / 2

    def about(self) -> dict[str, Any]:
        """Return the fields of :class:`Tokens`."""
        return asdict(self.tokens)

    def write_labels(self, folder: Path) -> None:
        """Write ``tokens.txt``."""
        (folder / TOKENS).write_text(self.tokens.lines(), encoding="utf-8")


def read_head(state: Mapping, dictionary: str | None, *, name: str) -> CtcHead:
    """Return the head of a fine-tuned ``hubert_ctc``.

    Args:
        state: the checkpoint.
        dictionary: fairseq's file of the labels; when None, that in the checkpoint or in its data folder.
        name: option and file, for messages.

    Raises:
        StarError: it has no head, one of another number of tokens than the dictionary, or labels of a kind that is not
            supported; the dictionary is missing or damaged.
    """
    weights = state["model"]
    head = {key.removeprefix(PROJECTION): value for key, value in weights.items() if key.startswith(PROJECTION)}
    weight, bias = head.get("weight"), head.get("bias")
    if head.keys() != {"weight", "bias"} or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise misfit(name, f"{PROJECTION}weight and {PROJECTION}bias are no linear layer to tokens")
    labels = _dictionary(state, dictionary, name)
    if len(labels) != len(weight):
        raise StarError(
            f"{name}: its head has {len(weight)} tokens and its dictionary {len(labels)}; give the dictionary that it "
            f"was fine-tuned with as {DICTIONARY}"
        )
    post_process = plain(plain(state["cfg"]).get("criterion")).get("post_process")
    return CtcHead(weight.float(), bias.float(), _tokens(labels, post_process, name))


def build_model(state: Mapping, head: CtcHead) -> Callable[[Tensor], list[Tensor]]:
    """Return fairseq's own model of a checkpoint, as a function of one utterance (1 x samples)."""
    # fairseq's own config lacks `autoregressive`, which its encoder asks for (fairseq_hooks/hubert_ctc.py).
    config = OmegaConf.create({**sections(state["cfg"])[0], "autoregressive": False, "data": ""})
    recorded = state.get("task_state")
    # Without dictionaries the pretraining task would look for files of units, which fine-tuning has no use for.
    restored = {"dictionaries": [None], **(recorded if isinstance(recorded, Mapping) else {})}
    # Of the dictionary it asks only for the size.
    task = SimpleNamespace(target_dictionary=head.tokens.symbols, state_dict=lambda: restored)
    model = HubertCtc.build_model(config, task)
    model.load_state_dict(state["model"])
    model.eval()

    def log_probs(source: Tensor) -> list[Tensor]:
        return [model.get_normalized_probs(model(source=source, padding_mask=None), log_probs=True)[:, 0]]

    return log_probs


def _tokens(labels: Dictionary, post_process: str | None, name: str) -> Tokens:
    symbols = tuple(labels.symbols)
    if post_process is None:
        marked = any(symbol.startswith(SPACE) for symbol in symbols)
        post_process = SENTENCEPIECE if marked else LETTER if BOUNDARY in symbols else NONE
    if post_process not in (LETTER, SENTENCEPIECE, NONE):
        raise StarError(
            f"{name} was fine-tuned with criterion.post_process={post_process}; exports know {LETTER}, {SENTENCEPIECE} "
            f"and {NONE}"
        )
    unreadable = next((symbol for symbol in symbols if not symbol or symbol.split() != [symbol]), None)
    if unreadable is not None or len(set(symbols)) != len(symbols):
        what = "repeats a token" if unreadable is None else f"contains the token {unreadable!a}, which has a space"
        raise StarError(f"{name}: its dictionary {what}; no runtime can read it")
    return Tokens(symbols, post_process, labels.index(BLANK), tuple(sorted({labels.bos(), labels.eos()})))


def _dictionary(state: Mapping, path: str | None, name: str) -> Dictionary:
    """Return the dictionary of the labels: the file's, else the checkpoint's, else that of its data folder."""
    task, recorded = sections(state["cfg"])[1], state.get("task_state")
    if path is not None:
        return _read_dictionary(path, f"{DICTIONARY} {path}")
    if isinstance(recorded, Mapping):
        several = recorded.get("dictionaries")
        for one in (recorded.get("target_dictionary"), *(several if isinstance(several, list) else ())):
            if isinstance(one, Dictionary):
                return one
    labels, folder = task.get("labels"), task.get("target_dictionary") or task.get("data")
    labels = labels[0] if isinstance(labels, list) and labels else labels
    file = os.path.join(str(folder), f"dict.{labels}.txt")
    if not os.path.isfile(file):
        raise StarError(f"{name} holds no dictionary of its labels, and there is no {file}; give one as {DICTIONARY}")
    return _read_dictionary(file, f"{name}: its dictionary {file}")


def _read_dictionary(path: str, what: str) -> Dictionary:
    try:
        return Dictionary.load(path)
    except OSError as error:
        raise StarError(f"{what} cannot be read ({error.strerror}); correct the path") from error
    except Exception as error:  # fairseq raises a bare Exception for bytes that are no UTF-8
        reason = " ".join(str(error).split())[:200]
        raise StarError(f"{what} does not hold fairseq's lines `symbol count` ({reason}); correct it") from error


def read_tokens(about: Mapping[str, Any]) -> Tokens:
    """Return the tokens that :meth:`CtcHead.about` described.

    Raises:
        KeyError, TypeError, ValueError: it is another description.
    """
    symbols, silent = tuple(map(str, about["symbols"])), tuple(map(int, about["silent"]))
    if about["post_process"] not in (LETTER, SENTENCEPIECE, NONE):
        raise ValueError(about["post_process"])
    return Tokens(symbols, about["post_process"], int(about["blank"]), silent)
