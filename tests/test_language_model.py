"""Language modelling: windows, what counts, metrics, prediction, and what a user may get wrong."""

from __future__ import annotations

import gzip
import json
import math

import pytest
import test_resume
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rlcore
from envs import metrics
from envs.language_model import LanguageModel
from envs.texts import IGNORE, TokenCriterion, read_text
from rlcore.errors import UserError
from rlcore.testing import check_agent, check_env

TEXT = "".join(chr(ord("a") + i * i % 23) for i in range(200))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def everything(env):
    """Return all windows of an environment's split, in order."""
    return env.task.draw(torch.arange(env.task.size))


def read_back(env):
    """Return the text that a held-out split's windows predict, in order."""
    target = everything(env).target.flatten()
    return "".join(env.corpus.vocabulary.decode(target[target != IGNORE][None]))


# Windows


def test_training_windows_start_at_every_token(file):
    env = LanguageModel(1, data=file, context=5)
    x, y = everything(env)
    decode = env.corpus.vocabulary.decode
    assert decode(x) == [TEXT[i : i + 5] for i in range(175)]  # of the first 180 characters
    assert decode(y) == [TEXT[i + 1 : i + 6] for i in range(175)]


@settings(max_examples=25, deadline=None)
@given(n=st.integers(30, 80), context=st.integers(1, 12), held=st.sampled_from([(0.1, 0.2), (0.3, 0.1), (0.25, 0.25)]))
def test_held_out_windows_predict_every_token_once(tmp_path_factory, n, context, held):
    path = tmp_path_factory.mktemp("held") / "text.txt"
    path.write_text(TEXT[:n])
    options = {"data": str(path), "context": context, "val_fraction": held[0], "test_fraction": held[1]}
    start, end = int(n * (1 - (held[0] + held[1]))), int(n * (1 - held[1]))
    for split, part, before in (("validation", TEXT[start:end], TEXT[start - 1]), ("test", TEXT[end:n], TEXT[end - 1])):
        env = LanguageModel(1, split=split, **options)
        assert env.episodes == env.task.size == math.ceil(len(part) / context)
        known = set(TEXT[:start])
        assert read_back(env) == "".join(c if c in known else "[UNK]" for c in part)
        x, y = everything(env)
        ids = torch.cat([x[:1, 0], y[y != IGNORE]])
        assert env.corpus.vocabulary.decode(x[:1, :1]) == [before if before in known else "[UNK]"]
        assert torch.equal(x[y != IGNORE], ids[:-1]) and not x[y == IGNORE][1:].any()


def test_without_a_test_fraction_the_validation_split_is_the_test_split(file):
    validation, test = (LanguageModel(1, split=split, data=file, context=7) for split in ("validation", "test"))
    assert read_back(validation) == read_back(test) == TEXT[180:]


def test_the_vocabulary_is_of_what_is_trained_on(tmp_path):
    (path := tmp_path / "t.txt").write_text("abab" * 20 + "zzzzzzzzz")
    env = LanguageModel(1, split="validation", data=str(path), context=4)
    assert env.corpus.vocabulary.size == 4 + 2
    values, text = env.report()
    assert values["parts"]["validation"] == {"characters": 9, "tokens": 9, "unknown": 9}
    assert values["parts"]["train"]["unknown"] == 0 and "9 unknown" in text


@pytest.mark.parametrize("tokens", ["chars", "bpe"])
def test_chinese_and_zipped_texts(tmp_path, tokens):
    text = "天地玄黄,宇宙洪荒。\r\n日月盈昃,辰宿列张。" * 20
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(text.encode()))
    options = {"data": str(tmp_path / "t.txt.gz"), "tokens": tokens, "vocabulary_size": 300}
    env = LanguageModel(1, split="test", context=8, **options)
    text = text.replace("\r\n", "\n")
    assert read_back(env) == text[int(len(text) * 0.9) :]


# Rewards and metrics


def test_the_criterion_by_hand():
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0], [5.0, 0.0]], [[0.0, 0.0]] * 3])
    target = torch.tensor([[1, 0, IGNORE], [IGNORE] * 3])
    reward = torch.tensor([math.log(0.75) + math.log(0.5), 0.0])
    criterion = TokenCriterion()
    torch.testing.assert_close(criterion.reward(logits, target), reward)
    total, count = criterion.loss(logits, target)
    torch.testing.assert_close(total, -reward.sum())
    assert int(count) == 2
    padded = TokenCriterion(ignore=0).loss(logits, torch.tensor([[1, 0, 0], [0, 0, 0]]))
    torch.testing.assert_close(padded[0], torch.tensor(-math.log(0.75)))
    assert int(padded[1]) == 1
    smooth = TokenCriterion(label_smoothing=0.2).loss(logits[:1, :1], target[:1, :1])[0]
    torch.testing.assert_close(smooth, torch.tensor(-0.9 * math.log(0.75) - 0.1 * math.log(0.25)))


def test_the_loss_is_minus_the_sum_of_the_rewards(file):
    env = LanguageModel(3, split="validation", data=file, context=7)
    env.reset(seed=1)  # the last window counts in part
    logits = torch.randn(3, 7, env.corpus.vocabulary.size, generator=torch.Generator().manual_seed(0))
    step = env.step(logits)
    assert step.extras["tokens"].tolist() == [7, 6, 7] and step.terminated.all()
    assert env.spec.loss is not None
    total, count = env.spec.loss(logits, everything(env).target[[1, 2, 0]])
    torch.testing.assert_close(total, -step.reward.sum())
    torch.testing.assert_close(step.extras["nll"], -step.reward)
    assert int(count) == 20


def test_the_metrics_are_means_over_tokens():
    outcome = {"nll": torch.tensor([6.0, 1.0]), "tokens": torch.tensor([3, 1]), "correct": torch.tensor([0, 1])}
    values = metrics.language(**outcome, per_character=0.5)  # the mean over windows would be 1.5
    assert values["loss"] == 7 / 4 and values["perplexity"] == math.exp(7 / 4) and values["accuracy"] == 1 / 4
    assert values["bits_per_character"] == pytest.approx(7 / 4 * 0.5 / math.log(2))


@pytest.mark.parametrize(("tokens", "size"), [("chars", 99), ("bpe", 300)])
def test_who_knows_nothing_pays_the_logarithm_of_the_vocabulary(file, tokens, size):
    env = LanguageModel(2, split="test", data=file, context=6, tokens=tokens, vocabulary_size=size)
    env.reset(seed=0)
    steps = [env.step(torch.zeros(2, 6, env.corpus.vocabulary.size)) for _ in range(-(-env.task.size // 2))]
    cat = {k: torch.cat([step.extras[k] for step in steps])[: env.task.size] for k in steps[0].extras}
    values, vocabulary = env.metrics(cat), env.corpus.vocabulary
    assert values["perplexity"] == pytest.approx(vocabulary.size, rel=1e-5)
    assert values["accuracy"] == 0  # padding is said everywhere, right nowhere
    bits = len(vocabulary.ids([TEXT[180:]])[0]) * math.log2(vocabulary.size) / 20
    assert values["bits_per_character"] == pytest.approx(bits, rel=1e-5)


# The contract, and use


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_environment_conforms(file, split):
    def make(num_envs, autoreset):
        return LanguageModel(num_envs, split=split, autoreset=autoreset, data=file, context=3, val_fraction=0.3)

    check_env(make, steps=15)


def decoder(file, **more):
    network = {"layers": 1, "heads": 2, "width": 16, "padding": False}
    return {
        "env": {"id": "language_model", "num_envs": 1, "kwargs": {"data": file, "context": 8}},
        "agent": {"name": "supervised", "network": {"name": "decoder", "kwargs": network}},
        "source": {"name": "dataset", "batch_size": 12},
        "optim": {"lr": 0.01},
        **more,
    }


def test_an_agent_conforms_on_it(file):
    check_agent(decoder(file))


def test_a_run_continues_texts_without_the_file(tmp_path):
    (path := tmp_path / "cycle.txt").write_text("abcdefg " * 80)
    settings = decoder(str(path), budget={"frames": 6000}, eval={"every": 0}, log={"every": 6000})
    run = rlcore.train(settings, out=tmp_path / "run")
    assert run.result["evaluation"]["perplexity"] < 1.05 and run.result["evaluation"]["accuracy"] > 0.99
    path.unlink()
    run = rlcore.load(tmp_path / "run")
    assert run.predict(["cde", "g a"]) == (["f", "b"], [])  # shorter than the context
    assert run.predict(["defg abcdefg ab"]) == (["c"], ["1 of 1 texts are longer than 8 tokens and were cut"])
    assert run.predict(["g"]) == ([" "], [])
    with pytest.raises(UserError, match="texts: got 2 of different lengths"):
        run.predict(["cde", "g"])
    assert run.predict(["Z ab"])[1] == ["1 of 1 texts hold tokens unknown to the vocabulary"]
    with pytest.raises(UserError, match="expected some text to continue"):
        run.predict([""])


def test_another_instance_reads_as_this_one_did(file):
    kwargs = {"data": file, "context": 8}
    fitted = json.loads(json.dumps(LanguageModel(1, **kwargs).fitted()))
    predictor = LanguageModel.predictor({**kwargs, **fitted})
    x, remarks = predictor.encode([TEXT])
    vocabulary = LanguageModel(1, **kwargs).corpus.vocabulary
    assert remarks == ["1 of 1 texts are longer than 8 tokens and were cut"] and vocabulary.decode(x) == [TEXT[-8:]]
    assert vocabulary.decode(predictor.encode(["ab"])[0]) == ["ab"] and predictor.encode(["ab"])[0].shape == (1, 2)
    logits = torch.zeros(1, 8, vocabulary.size)
    logits[0, -1, vocabulary.ids(["c"])[0][0]] = 1
    assert predictor.decode(logits) == ["c"] and predictor.spec.obs_space.length == 8


@pytest.mark.parametrize(
    ("data", "kwargs", "sentence"),
    [
        (b"", {}, "x.txt: the file is empty, expected text"),
        (b"\n \n", {}, "x.txt: the file is empty, expected text"),
        (b"a\xff", {}, "x.txt: expected UTF-8 text, got byte 0xff at 1"),
        (b"abcdefghij", {}, "x.txt: got 9 tokens to train on, expected more than the context of 64"),
        (b"abc", {"test_fraction": 0.1}, "x.txt: the validation split is empty, 3 characters are too few"),
        (None, {"data": "shakespear"}, "shakespear: there is no such file, expected a text file, or one of: shake"),
        (None, {"data": "."}, ".: expected a readable text file"),
        (None, {"context": 0}, "env.kwargs.context"),
        (None, {"val_fraction": 0.6, "test_fraction": 0.5}, "expected val_fraction \\+ test_fraction below 1"),
        (None, {"token": "bpe"}, "did you mean 'tokens'"),
    ],
)
def test_what_cannot_be_modelled_is_said_in_one_sentence(tmp_path, data, kwargs, sentence):
    if data is not None:
        (tmp_path / "x.txt").write_bytes(data)
        kwargs = {"data": str(tmp_path / "x.txt"), **kwargs}
    with pytest.raises(UserError, match=sentence) as caught:
        LanguageModel(1, **kwargs)
    assert "\n" not in str(caught.value)


def test_the_shipped_text_is_whole():
    text = read_text("shakespeare")
    assert len(text) == 1_353_892 and len(set(text)) == 76


def test_killed_and_resumed(tmp_path, monkeypatch):
    (path := tmp_path / "text.txt").write_text(TEXT * 20)
    small = {
        "agent.network.kwargs": {"layers": 1, "heads": 2, "width": 16, "dropout": 0.1},
        "env.kwargs": {"data": str(path), "context": 8},
        "budget.frames": 9600,
        "checkpoint.every": 480,
        "log.every": 120,
    }
    monkeypatch.setitem(test_resume.CASES, "language-model", ("shakespeare", small))
    test_resume.test_killed_and_resumed_equals_never_interrupted("language-model", tmp_path)
