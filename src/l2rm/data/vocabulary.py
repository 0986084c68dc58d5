"""Captions -> words -> ids, for any language, and for vocabularies that others have published."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from l2rm.data.tables import is_broken, read_text
from l2rm.errors import InputError
from l2rm.files import written_whole


class Tokens(Protocol):
    """What reads captions as token ids."""

    def encode(self, caption: str) -> list[int]:
        """The ids of a caption."""

    def encode_all(self, captions: Sequence[str]) -> Iterable[list[int]]:
        """The ids of each of many captions."""


SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
PAD, START, END, UNKNOWN = range(4)
FORMAT = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """The words that a model knows; a word's id is its place in `words`, and the first four are `SPECIAL`.

    Attributes:
        words: All words, special ones included.
        tokeniser: How captions fall into words, a name in `TOKENISERS`.

    Raises:
        InputError: A tokeniser that is none of ours, other special words, a word listed twice.

    Example:
        >>> vocabulary = Vocabulary.build(["A dog!", "a cat"], min_count=1)
        >>> vocabulary.words[4:], vocabulary.encode("A dog and a cat")
        (('a', 'cat', 'dog'), [1, 4, 6, 3, 4, 5, 2])
    """

    words: tuple[str, ...]
    tokeniser: str = "unicode"
    _ids: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.tokeniser not in TOKENISERS:
            raise InputError(f"tokeniser: {self.tokeniser!r} is none of ours; take one of {', '.join(TOKENISERS)}")
        if self.words[: len(SPECIAL)] != SPECIAL:
            raise InputError(f"words: the first four must be {' '.join(SPECIAL)}; build the vocabulary again")
        object.__setattr__(self, "_ids", {word: number for number, word in enumerate(self.words)})
        for number, word in enumerate(self.words):
            if is_broken(word):
                raise InputError(
                    f"words: number {number} has half of a character (a lone surrogate); build the vocabulary again"
                )
        if len(self._ids) != len(self.words):
            raise InputError("words: one is listed twice; build the vocabulary again")

    @classmethod
    def build(cls, captions: Iterable[str], *, tokeniser: str = "unicode", min_count: int = 4) -> Vocabulary:
        """The words seen at least `min_count` times, the most frequent first, equally frequent ones by code point."""
        empty = cls(words=SPECIAL, tokeniser=tokeniser)
        counts = Counter(word for caption in captions for word in empty.tokenise(caption))
        frequent = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        return cls(words=(*SPECIAL, *(word for _, word in frequent)), tokeniser=tokeniser)

    @classmethod
    def read(cls, path: str | Path) -> Vocabulary:
        """Read a file of ours, or published JSON `{"word2idx", "idx2word", "idx"}`, whose tokeniser is "published".

        Raises:
            InputError: No such file, no JSON, a key that is missing or wrong; names the file and the key.
        """
        text = read_text(Path(path))
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: no JSON ({error}); give a vocabulary.json") from error
        try:
            words, tokeniser = _words_of(content)
            return cls(words=words, tokeniser=tokeniser)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def write(self, path: str | Path) -> None:
        """Write `{"format", "tokeniser", "words"}` as JSON."""
        content = {"format": FORMAT, "tokeniser": self.tokeniser, "words": self.words}
        with written_whole(path) as beside:
            beside.write_text(json.dumps(content, ensure_ascii=False, indent=0), encoding="utf-8")

    def tokenise(self, caption: str) -> list[str]:
        """The caption's words, known or not."""
        return TOKENISERS[self.tokeniser](caption)

    def encode(self, caption: str) -> list[int]:
        """Ids of `<start>`, the caption's words, `<end>`; an unknown word is `<unk>`."""
        return [START, *(self._ids.get(word, UNKNOWN) for word in self.tokenise(caption)), END]

    def encode_all(self, captions: Sequence[str]) -> Iterable[list[int]]:
        """The ids of each of many captions."""
        return map(self.encode, captions)

    def __len__(self) -> int:
        return len(self.words)


def _words_of(content: Any) -> tuple[tuple[str, ...], str]:
    """The words and the tokeniser of a file of ours, or of a published one."""
    if not isinstance(content, dict) or not content.keys() & {"words", "word2idx"}:
        raise InputError("neither 'words' nor 'word2idx' is a key of it; give a vocabulary.json or a published one")
    if "word2idx" in content:
        ids = content["word2idx"]
        word_of = {str(number): word for word, number in ids.items()} if isinstance(ids, dict) else {}
        numbers = [str(number) for number in range(len(ids) if isinstance(ids, dict) else 0)]
        if not word_of or word_of.keys() != set(numbers):
            raise InputError("word2idx: its ids are not 0, 1, 2, …; give the file as it was published")
        return tuple(word_of[number] for number in numbers), "published"
    if content.get("format") != FORMAT:
        raise InputError(f"format: {content.get('format')!r} is not {FORMAT}; read it with the l2rm that wrote it")
    words = content["words"]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError("words: not a list of strings; build the vocabulary again")
    return tuple(words), str(content.get("tokeniser"))


def _unicode_words(caption: str) -> list[str]:
    """Words of any language, case and ways of writing the same letter taken away, punctuation dropped.

    A word is a run of letters, marks and digits; a Chinese character or a kana is a word by itself, and so is a symbol
    such as an emoji. Invisible format characters (joiners, soft hyphens, directions) are taken out.
    """
    pattern, invisible = _unicode_rules()
    folded = unicodedata.normalize("NFD", caption).casefold()  # decomposed, as some marks have a case of their own
    return pattern.findall(unicodedata.normalize("NFKC", folded).translate(invisible))


@cache
def _unicode_rules() -> tuple[re.Pattern[str], dict[int, None]]:
    """The pattern of a word, and the characters to take out before it is looked for."""
    characters: dict[str, list[str]] = {"M": [], "So": [], "Cf": []}
    for character in map(chr, range(sys.maxunicode + 1)):
        category = unicodedata.category(character)
        key = "M" if category[0] == "M" else category
        if key in characters:
            characters[key].append(character)
    marks, symbols = "".join(characters["M"]), "".join(characters["So"])
    single = "\u3005\u3007\u3021-\u3029\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    single += "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff"
    letter = f"[^\\W_{single}]"
    pattern = re.compile(f"[{single}{symbols}]|{letter}(?:{letter}|[{marks}])*")
    zero_width_space = "\u200b"  # parts words in scripts that write no spaces
    return pattern, {ord(character): None for character in characters["Cf"] if character != zero_width_space}


def _wordpunct(caption: str) -> list[str]:
    """Runs of word characters, and every other visible character by itself."""
    return re.findall(r"\w+|[^\w\s]", caption.lower())


def _published(caption: str) -> list[str]:
    """The Penn Treebank words that published vocabularies were made from, sentence by sentence.

    Those came from NLTK's `word_tokenize`, which finds the sentences with a model to be downloaded; `sentences` stands
    in for it.
    """
    return [word for sentence in sentences(caption.lower()) for word in _treebank().tokenize(sentence)]


def sentences(text: str) -> list[str]:
    """The sentences of a caption in lower case: one ends at a full stop after two letters and before a space.

    Abbreviations such as "mr." or "st." end none. What hangs on it is whether such a full stop is a word by itself or
    the end of one, as the word rules alone part only the last full stop of a text from its word. `benchmarks/tokens.py`
    counts the captions that it touches, and those that NLTK's own splitter would read otherwise.

    Example:
        >>> sentences("dogs play in it. a st. bernard of 2.5 ft. sleeps")
        ['dogs play in it.', 'a st. bernard of 2.5 ft. sleeps']
    """
    return _SENTENCE_END.split(text)


_SENTENCE_END = re.compile(r"(?<=[^\W\d_]{2}\.)(?<!\b(?:dr|ft|jr|mr|ms|sr|st|vs)\.)(?<!\bmrs\.)\s+")


@cache
def _treebank() -> Any:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


TOKENISERS: dict[str, Callable[[str], list[str]]] = {
    "unicode": _unicode_words,
    "wordpunct": _wordpunct,
    "published": _published,
}
