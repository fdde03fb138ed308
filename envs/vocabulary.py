"""Vocabularies of tokens over the `tokenizers` library: trained on texts, read from a folder, saved as JSON.

Those trained here hold [PAD] = 0, [UNK] = 1, [BOS] = 2 and [EOS] = 3, then the rest; pretrained ones keep their own
numbers. Kinds: ``chars``, one token a character; ``bpe``, byte-level byte-pair encoding (Sennrich et al. 2016; it
knows no unknown text and writes back exactly what it read); ``wordpiece`` (Schuster and Nakajima 2012), lower-cased and
without accents; ``words``, lower-cased, punctuation apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from rlcore.errors import UserError, nearest
from rlcore.folders import PACKAGE, model_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Kind = Literal["chars", "bpe", "wordpiece", "words"]
KINDS: tuple[str, ...] = get_args(Kind)
NAMES = {  # of the special tokens, ours first, then those of BERT, RoBERTa and GPT-2
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "bos": ("[BOS]", "[CLS]", "<s>", "<|endoftext|>"),
    "eos": ("[EOS]", "[SEP]", "</s>", "<|endoftext|>"),
}
SPECIAL = [names[0] for names in NAMES.values()]


class Vocabulary:
    """A tokenizer and its special tokens.

    Attributes:
        size: number of tokens, special ones included.
        pad, unk, bos, eos: numbers of the special tokens; unk is None where everything can be written.

    Raises:
        UserError: the tokenizer has no token that begins or ends a text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # "[PAD]" in a text is text
        known = tokenizer.get_vocab()
        found = {role: [known[name] for name in names if name in known] for role, names in NAMES.items()}
        for role in ("bos", "eos"):
            if not found[role]:
                raise UserError(f"vocabulary: got no token for {role}, expected one of {', '.join(NAMES[role])}")
        if not found["pad"]:  # GPT-2 has none: one more token
            tokenizer.add_special_tokens(SPECIAL[:1])
            found["pad"] = [tokenizer.get_vocab()[SPECIAL[0]]]
        self.tokenizer = tokenizer
        self.size = tokenizer.get_vocab_size()
        self.pad, self.bos, self.eos = found["pad"][0], found["bos"][0], found["eos"][0]
        self.unk: int | None = next(iter(found["unk"]), None)
        self.special = sorted({ids[0] for ids in found.values() if ids})
        self.between = [self.eos] * (2 if known.get("</s>") == self.eos else 1)  # two texts; RoBERTa's way, or BERT's

    @classmethod
    def train(cls, texts: Iterable[str], kind: str, size: int) -> Vocabulary:
        """Return a vocabulary of at most ``size`` tokens, special ones included, that serves these texts best.

        Raises:
            UserError: the kind is unknown, the size too small, or the texts are empty.
        """
        if kind not in KINDS:
            raise UserError(f"tokens: got '{kind}', expected {', '.join(KINDS)} or a pretrained tokenizer's folder")
        smallest = len(SPECIAL) + (256 if kind == "bpe" else 1)
        if size < smallest:
            raise UserError(f"vocabulary_size: got {size}, expected at least {smallest} for '{kind}'")
        tokenizer = _pieces(list(texts), size) if kind == "wordpiece" else _learnt(texts, kind, size)
        if tokenizer.get_vocab_size() == len(SPECIAL):
            raise UserError("vocabulary: got no text to learn tokens from, expected some")
        return cls(tokenizer)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Vocabulary:
        """Return the vocabulary that `state` describes."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_str(json.dumps(state)))

    @classmethod
    def from_folder(cls, path: str | Path) -> Vocabulary:
        """Read a pretrained tokenizer: ``tokenizer.json``, or BERT's ``vocab.txt`` (lower-cased).

        Raises:
            UserError: the folder has neither, or the file is no tokenizer's.
        """
        from tokenizers import BertWordPieceTokenizer, Tokenizer

        file, words = Path(path) / "tokenizer.json", Path(path) / "vocab.txt"
        try:
            if file.is_file():
                return cls(Tokenizer.from_file(str(file)))
            if words.is_file():
                return cls(Tokenizer.from_str(BertWordPieceTokenizer(str(words)).to_str()))
        except UserError:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{path}: expected a tokenizer's files, got {error}") from None
        raise UserError(f"{path}: expected a folder with tokenizer.json or vocab.txt; it has neither")

    def state(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        return json.loads(self.tokenizer.to_str())

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, as many as it has."""
        return [found.ids for found in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def pair(self, first: Sequence[int], second: Sequence[int], room: int) -> list[int]:
        """Return two texts' tokens with an end between them, at most ``room``; the longer one is cut first."""
        room -= len(self.between)
        kept = min(len(first), len(second), room // 2)  # of the shorter one
        most = (room - kept, kept) if len(first) > len(second) else (kept, room - kept)
        return [*first[: most[0]], *self.between, *second[: most[1]]]

    def encode(
        self,
        texts: Sequence[str],
        length: int,
        side: Literal["left", "right"] = "right",
        bos: bool = False,
        eos: bool = False,
    ) -> Tensor:
        """Return tokens (B, length) int64, padded on one side.

        Of longer texts the beginning stays, of those padded on the left the end; bos and eos stay in any case.
        """
        return self.fill(self.ids(texts), length, side, bos, eos)

    def fill(
        self,
        ids: Sequence[Sequence[int]],
        length: int,
        side: Literal["left", "right"] = "right",
        bos: bool = False,
        eos: bool = False,
    ) -> Tensor:
        """Return B lists of tokens as one tensor (B, length); see `encode`."""
        rows, room = np.full((len(ids), length), self.pad, np.int64), length - bos - eos
        for row, tokens in zip(rows, ids, strict=True):
            kept = tokens[max(0, len(tokens) - room) :] if side == "left" else tokens[:room]
            whole = [*[self.bos] * bos, *kept, *[self.eos] * eos]
            row[length - len(whole) if side == "left" else 0 :][: len(whole)] = whole
        return torch.from_numpy(rows)

    def decode(self, tokens: Tensor) -> list[str]:
        """Return the texts of tokens (B, L), without padding, beginning and end; what is unknown reads [UNK]."""
        silent = {self.pad, self.bos, self.eos}
        kept = [[token for token in row if token not in silent] for row in tokens.tolist()]
        return self.tokenizer.decode_batch(kept, skip_special_tokens=False)


def resolve(tokens: str, size: int, texts: Iterable[str], state: dict[str, Any] | None = None) -> Vocabulary:
    """Return a saved vocabulary, a pretrained one where ``tokens`` is a folder, else one trained on the texts.

    Raises:
        UserError: as `Vocabulary.train` and `Vocabulary.from_folder`.
    """
    if state is not None:
        return Vocabulary.from_state(state)
    if tokens not in KINDS:
        if tokens.startswith(PACKAGE):
            return Vocabulary.from_folder(model_folder(tokens, "tokens", ("tokenizer.json",)))
        if Path(tokens).is_dir():
            return Vocabulary.from_folder(tokens)
        raise UserError(f"tokens: '{tokens}' is neither a kind of vocabulary nor a folder{nearest(tokens, KINDS)}")
    return Vocabulary.train(texts, tokens, size)


def _learnt(texts: Iterable[str], kind: str, size: int) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    options: dict[str, Any] = {"vocab_size": size, "special_tokens": SPECIAL, "show_progress": False}
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL[1]))
        trainer = trainers.WordLevelTrainer(**options)
        if kind == "chars":
            tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
            tokenizer.decoder = decoders.Fuse()
        else:
            tokenizer.normalizer = normalizers.Lowercase()
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _pieces(texts: list[str], size: int) -> Tokenizer:
    """Return a WordPiece tokenizer.

    The library numbers the single characters that go on with a word as it meets them, in an order that changes from
    run to run, and breaks ties by number. So they are numbered beforehand.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    def empty(vocabulary: dict[str, int] | None = None) -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(vocabulary or {}, unk_token=SPECIAL[1]))
        tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer

    normalizer = normalizers.BertNormalizer()
    characters = sorted({c for text in texts for c in set(normalizer.normalize_str(text)) if not c.isspace()})
    numbered = [*SPECIAL, *(f"##{c}" for c in characters)]
    trained = empty()
    trained.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=numbered, show_progress=False)
    )
    tokenizer = empty(trained.get_vocab())  # in which only the special tokens are special
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer
