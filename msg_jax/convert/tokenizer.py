"""CLIP's byte-pair encoding (Radford et al., arXiv 2103.00020) from its published file of merges.

The file (`bpe_simple_vocab_16e6.txt.gz`) is a list of pairs, the most frequent first. Vocabulary: the 256 bytes, the
256 bytes that end a word, one symbol for each merge, and the marks for a text's start and end.
"""

import gzip
import html
import itertools
import os
import pathlib
import re
import unicodedata

import numpy as np

from msg_jax.errors import UserError

_WORD_END = "</w>"
_MARKS = 2
_CONTRACTION = re.compile("'s|'t|'re|'ve|'m|'ll|'d")
_RUN = re.compile("L+|N|P+")  # letters together, numbers one by one, anything else that is not space together


def byte_symbols() -> list[str]:
    """A visible character for each byte: printable Latin-1 stands for itself, the others are counted from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = itertools.count(256)
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]


def split_words(text: str) -> list[str]:
    """The pieces inside which merging happens, of text without capitals.

    Contractions count as words only where a word may begin: after letters, but not after other punctuation.
    """
    shape = "".join(" " if c.isspace() else {"L": "L", "N": "N"}.get(unicodedata.category(c)[0], "P") for c in text)
    words, position = [], 0
    while position < len(text):
        match = _CONTRACTION.match(text, position) or _RUN.match(shape, position)
        end = match.end() if match else position + 1
        if match:
            words.append(text[position:end])
        position = end
    return words


class Tokenizer:
    """Text -> `context_tokens` numbers below `vocabulary`, as open_clip's tokeniser gives them.

    One thing is not done that open_clip does: garbled text (mojibake) is not repaired. Raises UserError if the file is
    no list of merges.
    """

    def __init__(self, path: str | os.PathLike, vocabulary: int = 49408, context_tokens: int = 77):
        self._context_tokens = context_tokens
        symbols = byte_symbols()
        merges = vocabulary - 2 * len(symbols) - _MARKS
        try:
            lines = gzip.decompress(pathlib.Path(path).read_bytes()).decode().split("\n")[1 : merges + 1]
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read as gzipped text ({error}): download it again") from error
        pairs = [tuple(line.split()) for line in lines]
        if len(pairs) < merges or any(len(pair) != 2 for pair in pairs):
            raise UserError(f"{path} does not list {merges} merges of two symbols: download it again")
        # Published order: visible bytes first, then those that stand for another character.
        ordered = sorted(range(256), key=lambda byte: symbols[byte])
        singles = [symbols[byte] for byte in ordered]
        entries = [*singles, *(symbol + _WORD_END for symbol in singles), *map("".join, pairs)]
        self._bytes = symbols
        self._numbers = {symbol: number for number, symbol in enumerate(entries)}
        self._ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self._start, self._end = vocabulary - 2, vocabulary - 1

    def __call__(self, text: str) -> np.ndarray:
        """(context_tokens,) int32: start, text, end, then zeros; a long text is cut and still ends with the mark."""
        text = " ".join(html.unescape(html.unescape(text)).split()).lower()
        numbers = [self._numbers[symbol] for word in split_words(text) for symbol in self._merge(word)]
        numbers = [self._start, *numbers[: self._context_tokens - _MARKS], self._end]
        return np.array(numbers + [0] * (self._context_tokens - len(numbers)), np.int32)

    def _merge(self, word: str) -> list[str]:
        """The symbols of a word: the pair that comes first in the list is merged everywhere, until none is listed."""
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
