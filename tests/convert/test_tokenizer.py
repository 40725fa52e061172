"""The tokeniser with a short list of merges; the expected ids are counted by hand.

The byte of "a" is 97, so its id is 97 - 33 = 64, and 256 more at the end of a word.
"""

import gzip
import json

from golden_files import SMALL
import mmaudio_reference
import numpy as np
import pytest
from released_files import MERGES, VOCABULARY_SIZE, write_vocabulary

from msg_jax.convert.tokenizer import Tokenizer, byte_symbols, split_words
from msg_jax.errors import UserError

START, END = VOCABULARY_SIZE - 2, VOCABULARY_SIZE - 1


def letter(c, ends=False):
    return ord(c) - ord("!") + 256 * ends


def merge(pair):
    return 512 + MERGES.index(pair)


@pytest.fixture
def tokens(tmp_path):
    tokenizer = Tokenizer(write_vocabulary(tmp_path), VOCABULARY_SIZE, context_tokens=8)

    def tokens(text):
        numbers = tokenizer(text).tolist()
        assert len(numbers) == 8 and numbers[0] == START and END in numbers
        end = numbers.index(END)
        assert not any(numbers[end + 1 :])
        return numbers[1:end]

    return tokens


def test_bytes_have_visible_characters():
    symbols = byte_symbols()
    assert len(set(symbols)) == 256 and symbols[ord("a")] == "a" and symbols[0xE9] == "é"
    assert symbols[0] == chr(256) and symbols[ord(" ")] == chr(256 + 32) and symbols[0x7F] == chr(256 + 33)


def test_merges_follow_the_order_of_the_list(tokens):
    assert tokens("dog") == [merge("do g</w>")]
    assert tokens("cat") == [merge("ca t</w>")]
    assert tokens("do") == [letter("d"), letter("o", ends=True)]  # the list has "d o" but not "d o</w>"
    assert tokens("dodo") == [merge("d o"), letter("d"), letter("o", ends=True)]
    assert tokens("dog cat") == [merge("do g</w>"), merge("ca t</w>")]
    assert tokens("dogs") == [merge("d o"), letter("g"), letter("s", ends=True)]
    assert tokens("") == []


def test_text_is_normalised(tokens):
    assert tokens("  DOG \n\tCat ") == tokens("dog cat")
    assert tokens("&amp;amp;") == [letter("&", ends=True)]


def test_bytes_that_are_not_ascii(tokens):
    # é is C3 A9 in UTF-8. Their characters are Ã and ©, with ids 94 + (0xC3 - 0xA1 - 1) and 94 + (0xA9 - 0xA1).
    assert tokens("é") == [94 + 0xC3 - 0xA1 - 1, 94 + 0xA9 - 0xA1 + 256]
    # 😀 is F0 9F 98 80. The other bytes follow the 188 visible ones, from byte 0: the 33 up to the space, 7F, then 80, ...
    assert tokens("😀") == [94 + 0xF0 - 0xA1 - 1, 188 + 34 + 0x1F, 188 + 34 + 0x18, 188 + 34 + 256]


def test_a_long_text_is_cut_before_the_end_token(tokens):
    assert tokens("cat " * 30) == [merge("ca t</w>")] * 6


@pytest.mark.parametrize("text, words", [
    ("it's the dog's 3rd, isn't it?!", ["it", "'s", "the", "dog", "'s", "3", "rd", ",", "isn", "'t", "it", "?!"]),
    ("rock'n'roll", ["rock", "'", "n", "'", "roll"]),
    ("we'll -'s 12 a_b", ["we", "'ll", "-'", "s", "1", "2", "a", "_", "b"]),
    ("naïve 日本 ½", ["naïve", "日本", "½"]),
])
def test_split_words(text, words):
    assert split_words(text) == words


def test_other_files_are_rejected(tmp_path):
    path = write_vocabulary(tmp_path, MERGES[:3])
    with pytest.raises(UserError, match="does not list 6 merges"):
        Tokenizer(path, VOCABULARY_SIZE)
    for content in (b"plain text", gzip.compress(b"x" * 1000)[:20]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"bpe_simple_vocab_16e6\.txt\.gz cannot be read"):
            Tokenizer(path, VOCABULARY_SIZE)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Ids of the published vocabulary, from the merges that the reference texts use; any other would never be applied."""
    with np.load(SMALL / "front_end.npz") as golden:
        arrays = {key: golden[key] for key in golden.files if key.startswith("tokens/")}
    merges = str(arrays["tokens/merges"]).split("\n")
    path = write_vocabulary(tmp_path_factory.mktemp("vocabulary"), merges)
    tokenizer = Tokenizer(path, 512 + len(merges) + 2)
    published = np.array([*range(512), *(512 + arrays["tokens/ranks"]), 49406, 49407])
    return arrays, lambda text: np.where((ids := tokenizer(text)) > 0, published[ids], 0)


def test_ids_are_those_of_open_clip(reference):
    """Curly quotes, accents, ligatures, full-width and control characters, mojibake, and 3000 texts of many scripts."""
    arrays, ids = reference
    prompts = json.loads((SMALL / "prompts.json").read_text())
    np.testing.assert_array_equal([ids(prompt) for prompt in prompts], arrays["tokens/ids"])
    many = np.stack([ids(prompt) for prompt in mmaudio_reference.many_prompts()])
    assert mmaudio_reference.digest(many) == str(arrays["tokens/many"])


def test_names_of_the_marks_are_tokens(tokens):
    assert tokens("dog <start_of_text>cat") == [merge("do g</w>"), START, merge("ca t</w>")]
