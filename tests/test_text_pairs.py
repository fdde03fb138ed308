"""Pairs of texts, told apart as BERT and RoBERTa do, and texts classified by a model that writes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import pytest
import test_resume
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pretrained import LENGTH, VOCABULARY, bert, gpt2, roberta, saved, texts
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import rlcore
from agents.networks.pretrained import pretrained
from agents.networks.text_model import TextModel
from agents.networks.transformer import Encoder, segments
from envs.text_classification import TextClassification
from envs.vocabulary import Vocabulary
from rlcore import config
from rlcore.errors import UserError
from rlcore.generate import generate
from rlcore.spaces import Tokens
from rlcore.testing import check_agent

transformers = pytest.importorskip("transformers")
NAMES = {"bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]"), "roberta": ("<pad>", "<unk>", "<s>", "</s>")}
WORDS = [f"w{i}" for i in range(30)]


# Classes by a model that writes


@torch.no_grad()
def test_a_writing_model_classifies_by_its_last_token(tmp_path: Path) -> None:
    pad = VOCABULARY - 1
    model = gpt2(
        transformers.GPT2ForSequenceClassification, vocab_size=VOCABULARY, num_labels=3, pad_token_id=VOCABULARY - 1
    )
    space = Tokens(VOCABULARY, LENGTH, pad)
    network = pretrained(space, str(saved(model, tmp_path)), pool="last").eval()
    tokens = texts(pad)
    theirs = model(tokens, attention_mask=(tokens != pad).long()).logits
    torch.testing.assert_close(network(tokens) @ model.score.weight.T, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(network(texts(pad, "left")), network(tokens), atol=1e-5, rtol=1e-5)
    assert not network.per_token
    written = pretrained(space, str(tmp_path))
    assert isinstance(written, TextModel) and written.per_token
    with pytest.raises(UserError, match="pool 'last' is unknown"):
        pretrained(Tokens(VOCABULARY, LENGTH, 0), str(saved(bert(), tmp_path / "bert")), pool="last")


# Segments


def test_segments_by_hand() -> None:
    tokens = torch.tensor([[2, 7, 3, 8, 9, 3, 0], [2, 7, 3, 0, 0, 0, 0], [2, 7, 3, 3, 8, 3, 5]])
    assert segments(tokens, 3, 2).tolist() == [[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]]
    assert segments(tokens, 3, 3)[2].tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert not segments(tokens, None, 2).any()


def test_an_encoder_of_ones_own_tells_texts_apart_only_where_asked() -> None:
    space = Tokens(11, 7, 0, 2, 3)
    tokens, turned = torch.tensor([[2, 7, 3, 8, 3]]), torch.tensor([[2, 8, 3, 7, 3]])
    options: dict[str, Any] = {"layers": 1, "heads": 1, "width": 8, "positions": "sinusoidal"}
    torch.manual_seed(0)
    plain, told = Encoder(space, **options), Encoder(space, segments=2, **options)
    assert plain.segments is None and told.segments is not None
    told.load_state_dict({**plain.state_dict(), "segments.weight": torch.zeros(2, 8)})
    assert torch.equal(told(tokens), plain(tokens))
    told.segments.weight.data[1] = 1 + torch.arange(8)
    assert not torch.allclose(told(tokens), plain(tokens), atol=1e-3)
    alone = torch.tensor([[2, 7, 8, 4, 3]])
    assert torch.equal(told(alone), plain(alone))  # one text alone has no second segment
    assert not torch.allclose(told(tokens), told(turned), atol=1e-4)
    with pytest.raises(UserError, match=r"network\.kwargs\.segments: got 0, expected a positive integer"):
        Encoder(space, segments=0)


def pairs(first: list[int], second: list[int], between: int, pad: int, eos: int) -> tuple[list[int], list[int]]:
    """Return a row of tokens of two texts, LENGTH long, and the segment of each."""
    head, tail = [4, *first, eos], [*[eos] * (between - 1), *second, eos]
    row = [*head, *tail]
    kinds = [0] * len(head) + [1] * len(tail)
    return row + [pad] * (LENGTH - len(row)), kinds + [0] * (LENGTH - len(row))


@pytest.mark.parametrize("pool", ["mean", "first"])
@torch.no_grad()
def test_bert_agrees_on_pairs(pool: str, tmp_path: Path) -> None:
    model = bert()
    network = pretrained(Tokens(VOCABULARY, LENGTH, 0, 4, 3), str(saved(model, tmp_path)), pool).eval()
    made = [pairs([7, 8, 9], [10, 11], 1, 0, 3), pairs([12], [13, 14, 15, 16, 17], 1, 0, 3), pairs([5, 6], [], 1, 0, 3)]
    tokens, kinds = (torch.tensor(part) for part in zip(*made, strict=True))
    mask = tokens != 0
    hidden = model(tokens, attention_mask=mask.long(), token_type_ids=kinds).last_hidden_state
    expected = torch.stack([h[m].mean(0) if pool == "mean" else h[0] for h, m in zip(hidden, mask, strict=True)])
    torch.testing.assert_close(network(tokens), expected, atol=1e-4, rtol=1e-4)
    blind = model(tokens, attention_mask=mask.long()).last_hidden_state  # all of segment 0
    assert (blind[:, 0] - hidden[:, 0]).abs().max() > 1e-3


@torch.no_grad()
def test_roberta_agrees_on_pairs(tmp_path: Path) -> None:
    model = roberta()
    network = pretrained(Tokens(VOCABULARY, LENGTH, 1, 0, 2), str(saved(model, tmp_path)), "first").eval()
    tokens = torch.tensor([pairs([7, 8, 9], [10, 11], 2, 1, 2)[0], pairs([12], [13, 14], 2, 1, 2)[0]])
    hidden = model(tokens, attention_mask=(tokens != 1).long()).last_hidden_state
    assert model.config.type_vocab_size == 2  # of which the second is never used
    torch.testing.assert_close(network(tokens), hidden[:, 0], atol=1e-4, rtol=1e-4)


# Tokens of pairs


def tokenizer(kind: str) -> Any:
    """Return a tokenizer of words that writes pairs as a family of models does."""
    known = {name: i for i, name in enumerate([*NAMES[kind], *WORDS])}
    found = Tokenizer(models.WordLevel(known, unk_token=NAMES[kind][1]))
    found.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    found.add_special_tokens([*NAMES[kind]])
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["bert", "roberta"]),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=12),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=12),
    st.integers(8, 20),
)
def test_pairs_are_written_and_cut_as_the_models_own_tokenizers_do(
    kind: str, first: list[str], second: list[str], length: int
) -> None:
    theirs, kinds = tokenizer(kind), cast("Any", processors)
    bos, eos = ((name, number) for name, number in zip(NAMES[kind][2:], (2, 3), strict=True))
    if kind == "bert":
        theirs.post_processor = kinds.BertProcessing(eos, bos)
    else:
        theirs.post_processor = kinds.RobertaProcessing(eos, bos, trim_offsets=False, add_prefix_space=False)
    theirs.enable_truncation(length, strategy="longest_first")
    theirs.enable_padding(length=length, pad_id=0, pad_token=NAMES[kind][0])
    expected = theirs.encode(" ".join(first), " ".join(second))
    ours = Vocabulary(tokenizer(kind))
    one, two = ours.ids([" ".join(side) for side in (first, second)])
    row = ours.fill([ours.pair(one, two, length - 2)], length, bos=True, eos=True)
    assert row.tolist() == [expected.ids]
    if kind == "bert":
        mask = torch.tensor([expected.attention_mask]).bool()
        assert torch.equal(segments(row, ours.eos, 2)[mask], torch.tensor([expected.type_ids])[mask])


# The task


def recipe(folder: Path, **more: Any) -> dict[str, Any]:
    """Return settings of a task over pairs of texts: whether they share their last word."""
    rng, rows = random.Random(0), {}
    while len(rows) < 400:
        first, second = (" ".join(rng.choices("abcdefgh", k=3)) for _ in range(2))
        same = rng.random() < 0.5
        rows[f"{first[:-1]}{second[-1]}" if same else first, second] = "same" if same else "other"
    lines = [f"{a},{b},{label}" for (a, b), label in rows.items() if (a[-1] == b[-1]) == (label == "same")]
    (folder / "pairs.csv").write_text("\n".join(["one,two,label", *lines, lines[0], "x,,same"]) + "\n")
    kwargs = {"data": str(folder / "pairs.csv"), "text": "one", "pair": "two", "tokens": "words", "length": 9}
    network = {"name": "encoder", "kwargs": {"layers": 1, "heads": 2, "width": 16, "segments": 2}}
    return {
        "env": {"id": "text_classification", "num_envs": 2, "kwargs": kwargs},
        "agent": {"name": "supervised", "network": network},
        "source": {"name": "dataset", "batch_size": 16},
        "optim": {"lr": 0.003},
        "budget": {"frames": 400},
        "eval": {"every": 0},
        **more,
    }


def test_a_file_of_pairs(tmp_path: Path) -> None:
    kwargs = recipe(tmp_path)["env"]["kwargs"]
    env = TextClassification(2, split="test", **kwargs)
    task: Any = env.task
    counts = env.data.counts
    assert (counts["missing"], counts["duplicates"]) == (1, 1)
    tokens, target = task.draw(torch.arange(task.size))
    words = env.data.vocabulary
    for i, (row, label) in enumerate(zip(tokens.tolist(), target.tolist(), strict=True)):
        first, second = task.item(i).split(" || ")
        held = [words.bos, *words.ids([first])[0], words.eos, *words.ids([second])[0], words.eos]
        assert row == held and (first[-1] == second[-1]) == (env.data.labels[label] == "same")
    assert {*env.data.vocabulary.tokenizer.get_vocab()} >= {*"abcdefgh"}  # of both sides
    with pytest.raises(UserError, match="length of at least 6 beside pair"):
        TextClassification(1, **{**kwargs, "length": 5})
    with pytest.raises(UserError, match="there is no column 'three'"):
        TextClassification(1, **{**kwargs, "pair": "three"})


def test_new_pairs_are_labelled_from_words_rows_and_files(tmp_path: Path) -> None:
    run = rlcore.train(recipe(tmp_path), out=tmp_path / "run")
    predictor: Any = run.predictor
    (tmp_path / "new.csv").write_text("two,one\na b c,d e f\na,b\n")
    rows = [{"one": "d e f", "two": "a b c"}, {"one": "b", "two": "a"}]
    encoded = predictor.encode(rows)[0]
    assert torch.equal(predictor.encode(tmp_path / "new.csv")[0], encoded)
    assert torch.equal(predictor.encode(predictor.read(["d e f", "a b c", "b", "a"]))[0], encoded)
    assert run.predict(rows)[0] == run.predict(tmp_path / "new.csv")[0]
    with pytest.raises(UserError, match="new texts: got 3, expected pairs of one 'one' and one 'two'"):
        predictor.read(["a", "b", "c"])
    with pytest.raises(UserError, match="there is no column 'two'"):
        predictor.encode(["alone"])
    assert predictor.encode([{"one": "a b c d e f g", "two": "a b"}])[1] == [
        "1 of 1 texts are longer than 7 tokens and were cut"
    ]


def writer(folder: Path) -> dict[str, Any]:
    """Return settings of a small pretrained model of GPT-2's kind that classifies pairs."""
    found = recipe(folder)
    vocabulary = Vocabulary.train("abcdefgh", "words", 99)
    vocabulary.tokenizer.save(str(folder / "tokenizer.json"))
    saved(gpt2(vocab_size=vocabulary.size), folder)
    found["agent"]["network"] = {"name": "pretrained", "kwargs": {"path": str(folder), "pool": "last", "dropout": 0.0}}
    return config.override(found, {"env.kwargs.tokens": str(folder)})


def test_conformance(tmp_path: Path) -> None:
    check_agent(recipe(tmp_path))
    bag = {"agent.network.name": "ngrams", "agent.network.kwargs": {"buckets": 64}}
    check_agent(config.override(recipe(tmp_path), bag))
    check_agent(writer(tmp_path))


def test_killed_and_resumed_equals_never_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pretrained").mkdir()
    path = tmp_path / "pretrained"
    settings = writer(path)
    (path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setitem(
        test_resume.CASES, "pairs", (str(path / "recipe.yaml"), {"budget.frames": 3200, "checkpoint.every": 160})
    )
    test_resume.test_killed_and_resumed_equals_never_interrupted("pairs", tmp_path)
    with pytest.raises(UserError, match="agent 'supervised' writes no text with network 'pretrained'"):
        generate(tmp_path / "whole", ["a b c"])
