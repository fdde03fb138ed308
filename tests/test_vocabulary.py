"""Vocabularies: what they learn, how texts become tensors and texts again, what is saved, and what may go wrong."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from envs.vocabulary import KINDS, Vocabulary, resolve
from rlcore.errors import UserError

TEXTS = ["the cat sat on the mat.", "The dog sat, too!", "你好,世界。你好吗?"]


@pytest.fixture(scope="module")
def bpe():
    return Vocabulary.train(TEXTS, "bpe", 300)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_first_and_training_repeats(kind):
    texts = [*TEXTS, "The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs."]
    one, *others = (Vocabulary.train(iter(texts), kind, 300) for _ in range(4))
    assert (one.pad, one.unk, one.bos, one.eos) == (0, 1, 2, 3) and one.special == [0, 1, 2, 3]
    assert all(other.state() == one.state() for other in others) and one.size <= 300


def test_what_each_kind_takes_for_a_token():
    chars, words = Vocabulary.train(["ab a"], "chars", 99), Vocabulary.train(["The cat, the dog"], "words", 99)
    assert chars.size == 4 + 3 and chars.ids(["aab"]) == [[4, 4, chars.ids(["b"])[0][0]]]  # the most frequent first
    assert words.size == 4 + 4 and len(words.ids(["the dog,cat"])[0]) == 4
    assert words.decode(torch.tensor(words.ids(["Cat, dog"]))) == ["cat , dog"]
    pairs = Vocabulary.train(["xyxyxy xyxy"], "bpe", 4 + 256 + 1)  # room for one merge: x y, the most frequent pair
    assert len(pairs.ids(["xyx"])[0]) == 2 and len(pairs.ids(["yxy"])[0]) == 2
    pieces = Vocabulary.train(["playing played plays"] * 9, "wordpiece", 40)
    assert pieces.decode(torch.tensor(pieces.ids(["Played"]))) == ["played"]
    assert len(pieces.ids(["play"])[0]) < 4


def test_the_size_bounds_what_is_learnt_and_the_rarest_become_unknown():
    vocabulary = Vocabulary.train(["aaa bb c"], "words", 4 + 2)
    assert vocabulary.size == 6
    some = Vocabulary.train(["aaabbc"], "chars", 4 + 2)
    assert some.ids(["abc"]) == [[4, 5, some.unk]] and some.decode(torch.tensor([[4, 1]])) == ["a[UNK]"]


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_bpe_writes_back_exactly_what_it_read(bpe, text):
    tokens = bpe.encode([text], 200, bos=True, eos=True)
    assert bpe.decode(tokens) == [text]
    assert bpe.unk not in tokens


@settings(max_examples=30, deadline=None)
@given(st.text("ab\n\r\t 好", min_size=1, max_size=30))
def test_characters_write_back_exactly_what_they_read(text):
    vocabulary = Vocabulary.train([text], "chars", 99)
    assert vocabulary.decode(vocabulary.encode([text], 40)) == [text]
    assert vocabulary.size == 4 + len(set(text))


def test_filling_and_cutting_by_hand():
    vocabulary = Vocabulary.train(["abcd"], "chars", 99)
    a, b, c, d = vocabulary.ids(["abcd"])[0]
    right = vocabulary.encode(["ab", "abcd", ""], 4, bos=True, eos=True)
    assert right.tolist() == [[2, a, b, 3], [2, a, b, 3], [2, 3, 0, 0]] and right.dtype == torch.int64
    assert vocabulary.encode(["ab", "abcd"], 3, "left").tolist() == [[0, a, b], [b, c, d]]
    assert vocabulary.encode(["ab", "abcd"], 3, "left", bos=True).tolist() == [[2, a, b], [2, c, d]]
    assert vocabulary.encode(["abcd"], 3, eos=True).tolist() == [[a, b, 3]]


def test_the_name_of_a_special_token_in_a_text_is_text():
    vocabulary = Vocabulary.train(["[PAD] [EOS]"], "chars", 99)
    for kept in (vocabulary, Vocabulary.from_state(vocabulary.state())):
        assert len(kept.ids(["[PAD]"])[0]) == 5 and kept.decode(kept.encode(["[EOS]"], 9)) == ["[EOS]"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_json_and_all_there_is(kind):
    vocabulary = Vocabulary.train(TEXTS, kind, 300)
    state = json.loads(json.dumps(vocabulary.state()))
    again = Vocabulary.from_state(state)
    assert again.ids(TEXTS) == vocabulary.ids(TEXTS) and again.size == vocabulary.size
    assert resolve("ignored", 0, [], state).state() == vocabulary.state()


def test_pretrained_ones_keep_their_numbers(tmp_path):
    words = ["[PAD]", "a", "[CLS]", "[SEP]", "[UNK]", "##b", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    bert = resolve(str(tmp_path), 9, [])
    assert (bert.pad, bert.unk, bert.bos, bert.eos, bert.size) == (0, 4, 2, 3, 7)
    assert bert.encode(["AB a"], 6, bos=True, eos=True).tolist() == [[2, 1, 5, 1, 3, 0]]
    assert Vocabulary.from_state(bert.state()).state() == bert.state()
    gpt = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "<|endoftext|>": 2}, merges=[]))
    gpt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    gpt.add_special_tokens(["<|endoftext|>"])
    gpt.enable_truncation(2)
    gpt.enable_padding(length=9)
    gpt.save(str(tmp_path / "tokenizer.json"))  # comes before vocab.txt
    read = Vocabulary.from_folder(tmp_path)
    assert (read.pad, read.unk, read.bos, read.eos, read.size) == (3, None, 2, 2, 4)  # a token more, for padding
    assert read.encode(["abab"], 6, eos=True).tolist() == [[0, 1, 0, 1, 2, 3]]
    again = Vocabulary.from_state(read.state())
    assert (again.pad, again.size) == (3, 4)


def test_what_cannot_be_a_vocabulary_is_said_in_one_sentence(tmp_path):
    for build, sentence in [
        (lambda: Vocabulary.train(TEXTS, "byte", 9), "tokens: got 'byte', expected chars, bpe, wordpiece, words or"),
        (lambda: Vocabulary.train(TEXTS, "bpe", 259), "vocabulary_size: got 259, expected at least 260 for 'bpe'"),
        (lambda: Vocabulary.train([], "chars", 99), "vocabulary: got no text to learn tokens from"),
        (lambda: Vocabulary.train([" "], "words", 99), "vocabulary: got no text to learn tokens from"),
        (lambda: resolve("char", 99, TEXTS), "tokens: 'char' is neither a kind of vocabulary nor a folder; did you "),
        (lambda: resolve(str(tmp_path), 99, TEXTS), "expected a folder with tokenizer.json or vocab.txt; it has neit"),
    ]:
        with pytest.raises(UserError, match=sentence.replace("[", r"\[")) as caught:
            build()
        assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="expected a tokenizer's files, got"):
        Vocabulary.from_folder(tmp_path)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"got no token for bos, expected one of \[BOS\], \[CLS\], <s>"):
        Vocabulary.from_folder(tmp_path)
