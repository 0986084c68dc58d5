import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2rm.data.vocabulary import SPECIAL, TOKENISERS, Vocabulary
from l2rm.errors import InputError


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A dog's ball, 2 cats!", "a dog s ball 2 cats"),
        ("我爱 ABC，北京。", "我 爱 abc 北 京"),
        ("犬がボール", "犬 が ボ ー ル"),
        ("ﾎﾞｰﾙ・ＡＢ", "ボ ー ル ab"),
        ("𠮷野家", "𠮷 野 家"),
        ("고양이가 잔다.", "고양이가 잔다"),
        ("Собака бежит, Ёж!", "собака бежит ёж"),
        ("«كلب يجري في الثلج»؟", "كلب يجري في الثلج"),
        ("قِطَّة", "قِطَّة"),
        ("हिन्दी में कुत्ता।", "हिन्दी में कुत्ता"),
        ("Ένας ΣΚΎΛΟΣ", "ένασ σκύλοσ"),
        ("Straße STRASSE", "strasse strasse"),
        ("a 🐶 runs❤️", "a 🐶 runs ❤"),
        ("👩‍🚀 👍🏽", "👩 🚀 👍"),
        ("می\u200cخواهم soft\u00adly", "میخواهم softly"),
        ("ภาพ\u200bสุนัข", "ภาพ สุนัข"),
        ("snake_case\t— … ", "snake case"),
        ("!?", ""),
    ],
)
def test_unicode_words(caption, words):
    assert TOKENISERS["unicode"](caption) == words.split()


@given(st.text(max_size=30))
def test_unicode_words_do_not_depend_on_how_letters_are_composed(text):
    words = TOKENISERS["unicode"]
    assert words(unicodedata.normalize("NFD", text)) == words(unicodedata.normalize("NFC", text))
    assert all(word and not any(character.isspace() for character in word) for word in words(text))


def test_accents_written_in_two_ways_are_one_word():
    assert TOKENISERS["unicode"]("Café CAFE\u0301 cafe\u0301") == ["café"] * 3


def test_wordpunct():
    assert TOKENISERS["wordpunct"]("Don't stop: x_y 3.5!") == ["don", "'", "t", "stop", ":", "x_y", "3", ".", "5", "!"]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("Don't", "do n't"),
        ("A man's dog, he cannot run.", "a man 's dog , he can not run ."),
        ("It is 5.5 m (or more)", "it is 5.5 m ( or more )"),
        ('A "red" car', "a `` red '' car"),
        ("A dog runs. It's gonna win!", "a dog runs . it 's gon na win !"),
        ("st. bernard in the u.s. army", "st. bernard in the u.s. army"),
        ("Dogs play in it. Mrs. Lee, 19. place", "dogs play in it . mrs. lee , 19. place"),
        ("A boat. One r.v. is at 5 ft. height", "a boat . one r.v. is at 5 ft. height"),
    ],
)
def test_published_words(caption, words):
    assert TOKENISERS["published"](caption) == words.split()


def test_build_counts_and_orders():
    vocabulary = Vocabulary.build(["b a", "b c", "a b d"], min_count=2)
    assert vocabulary.words == (*SPECIAL, "b", "a")
    assert len(vocabulary) == 6
    assert Vocabulary.build(["a b d", "b c", "b a"], min_count=2).words == vocabulary.words


def test_encode():
    vocabulary = Vocabulary.build(["a cat"], min_count=1)
    assert vocabulary.encode("A CAT, a dog") == [1, 4, 5, 4, 3, 2]
    assert vocabulary.encode("…") == [1, 2]


@pytest.mark.parametrize("tokeniser", sorted(TOKENISERS))
def test_round_trip(tmp_path, tokeniser):
    captions = ["A dog's ball", "我爱北京 🐶"]
    vocabulary = Vocabulary.build(captions, tokeniser=tokeniser, min_count=1)
    vocabulary.write(tmp_path / "vocabulary.json")
    back = Vocabulary.read(tmp_path / "vocabulary.json")
    assert (back.words, back.tokeniser) == (vocabulary.words, tokeniser)
    assert [back.encode(caption) for caption in captions] == [vocabulary.encode(caption) for caption in captions]


def published(words):
    return {
        "word2idx": {word: number for number, word in enumerate(words)},
        "idx2word": {str(number): word for number, word in enumerate(words)},
        "idx": len(words),
    }


def test_published_vocabulary(tmp_path):
    (tmp_path / "f30k.json").write_text(json.dumps(published([*SPECIAL, "do", "n't", "run"])))
    vocabulary = Vocabulary.read(tmp_path / "f30k.json")
    assert vocabulary.tokeniser == "published"
    assert vocabulary.encode("Don't walk") == [1, 4, 5, 3, 2]
    vocabulary.write(tmp_path / "ours.json")
    assert Vocabulary.read(tmp_path / "ours.json").encode("Don't walk") == [1, 4, 5, 3, 2]


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("{", "no JSON"),
        ("[]", "'words'"),
        ("{}", "'words'"),
        ({"format": 2, "words": [*SPECIAL], "tokeniser": "unicode"}, "format"),
        ({"format": 1, "words": [*SPECIAL, 3], "tokeniser": "unicode"}, "words"),
        ({"format": 1, "words": [*SPECIAL, "a", "a"], "tokeniser": "unicode"}, "words"),
        ({"format": 1, "words": ["a", "b", "c", "d"], "tokeniser": "unicode"}, "words"),
        ({"format": 1, "words": [*SPECIAL], "tokeniser": "klingon"}, "tokeniser"),
        ({"format": 1, "words": [*SPECIAL]}, "tokeniser"),
        ({"word2idx": {"<pad>": 0, "a": 2}}, "word2idx"),
        ({"word2idx": {"<pad>": 0, "a": "x"}}, "word2idx"),
        ({"word2idx": {"<pad>": 0, "a": 1, "b": 1}}, "word2idx"),
        ({"word2idx": []}, "word2idx"),
    ],
)
def test_bad_vocabularies_are_refused(tmp_path, content, key):
    path = tmp_path / "v.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=rf"v\.json: .*{key}.*; "):
        Vocabulary.read(path)


def test_a_missing_vocabulary_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"v\.json: .*; check the path"):
        Vocabulary.read(tmp_path / "v.json")
