"""CLIP's byte-pair encoding (Radford et al., arXiv 2103.00020), from its published list of merges.

The file (`bpe_simple_vocab_16e6.txt.gz`) lists pairs, the most frequent first. The vocabulary has the 256 bytes, the 256
bytes at the end of a word, one token per merge, and the start and end tokens.
"""

import gzip
import html
import itertools
import os
import pathlib
import re
import unicodedata

import ftfy
from jaxtyping import Int32
import numpy as np

from msg_jax.errors import UserError

_WORD_END = "</w>"
_MARKS = ("<start_of_text>", "<end_of_text>")
_FIXED = re.compile("|".join([*_MARKS, "'s|'t|'re|'ve|'m|'ll|'d"]), re.IGNORECASE)  # also a long s
_DROPPED = "\u0345"  # iota subscript: open_clip's pattern ignores case, and a letter is this sign's upper case
_RUN = re.compile("L+|N|P+")  # a run of letters, a single digit, or a run of other characters except spaces


def byte_symbols() -> list[str]:
    """Return a visible character per byte: printable Latin-1 stands for itself, the others count up from U+0100."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = itertools.count(256)
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]


def split_words(text: str) -> list[str]:
    """Split lower-case text into the pieces that merging never crosses.

    The names of the start and end tokens are pieces. A contraction is a piece of its own only where a word can begin: after
    letters, but not after other punctuation.
    """
    kinds = {"L": "L", "N": "N"}
    spaces = [c.isspace() or c == _DROPPED for c in text]
    shape = "".join(" " if space else kinds.get(unicodedata.category(c)[0], "P") for c, space in zip(text, spaces))
    words, position = [], 0
    while position < len(text):
        match = _FIXED.match(text, position) or _RUN.match(shape, position)
        end = match.end() if match else position + 1
        if match:
            words.append(text[position:end])
        position = end
    return words


class Tokenizer:
    """Map text to `context_tokens` token ids below `vocabulary`, as open_clip's tokeniser does.

    Text is first repaired and normalised by ftfy: curly quotes, ligatures, mojibake and the like. Raises UserError if the
    file is not a list of merges.
    """

    def __init__(self, path: str | os.PathLike, vocabulary: int = 49408, context_tokens: int = 77):
        self._context_tokens = context_tokens
        symbols = byte_symbols()
        merges = vocabulary - 2 * len(symbols) - len(_MARKS)
        try:
            lines = gzip.decompress(pathlib.Path(path).read_bytes()).decode().split("\n")[1 : merges + 1]
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read as gzipped text ({error}): download it again") from error
        pairs = [tuple(line.split()) for line in lines]
        if len(pairs) < merges or any(len(pair) != 2 for pair in pairs):
            raise UserError(f"{path} does not list {merges} merges of two symbols: download it again")
        # Published order: bytes that stand for themselves first, then the others.
        ordered = sorted(range(256), key=lambda byte: symbols[byte])
        singles = [symbols[byte] for byte in ordered]
        entries = [*singles, *(symbol + _WORD_END for symbol in singles), *map("".join, pairs), *_MARKS]
        self._bytes = symbols
        self._numbers = {symbol: number for number, symbol in enumerate(entries)}
        self._ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self._start, self._end = vocabulary - 2, vocabulary - 1

    def __call__(self, text: str) -> Int32[np.ndarray, " context_tokens"]:
        """Return ids (context_tokens,) int32: start, text, end, then zeros. A long text is cut before the end token."""
        text = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()
        numbers = [self._numbers[symbol] for word in split_words(text) for symbol in self._merge(word)]
        numbers = [self._start, *numbers[: self._context_tokens - len(_MARKS)], self._end]
        return np.array(numbers + [0] * (self._context_tokens - len(numbers)), np.int32)

    def _merge(self, word: str) -> list[str]:
        """Symbols of a word: merge the pair that is first in the list, everywhere, until no pair is listed."""
        if word in _MARKS:
            return [word]
        symbols = [self._bytes[byte] for byte in word.encode()]
        symbols[-1] += _WORD_END
        while len(symbols) > 1:
            best = min(itertools.pairwise(symbols), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            merged = []
            for symbol in symbols:
                if merged and (merged[-1], symbol) == best:
                    merged[-1] += symbol
                else:
                    merged.append(symbol)
            symbols = merged
        return symbols
