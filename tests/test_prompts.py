"""Prompts with a verifiable reward, judged continuations, and texts that are classified and continued."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import rlcore
from envs.classify_and_write import ClassifyAndWrite
from envs.prompts import Prompts
from rlcore.errors import UserError
from rlcore.spaces import Tokens
from rlcore.testing import check_env

KINDS = ("arithmetic", "sorting", "pattern")
OPENINGS = {"prompt_length": 4, "completion_length": 3, "tokens": "words"}
GOOD = "a fine and lovely film with a warm heart number {}"
BAD = "a dull and awful film with a cold heart number {}"


def everything(env):
    return env.task.draw(torch.arange(env.task.size))


def texts(env) -> list[tuple[str, str]]:
    prompts, answers = everything(env)
    vocabulary = env.prepared.vocabulary
    return list(zip(vocabulary.decode(prompts), vocabulary.decode(answers), strict=True))


def spelt(number: int) -> str:
    """Return a number in letters, so that texts differ by words that do not count."""
    return " ".join("zyxwvutsrq"[int(digit)] for digit in str(number))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    file = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    rows = [f"{(GOOD if i % 2 else BAD).format(spelt(i))},{'positive' if i % 2 else 'negative'}" for i in range(200)]
    file.write_text("text,label\n" + "\n".join([*rows, "too short,positive"]) + "\n")
    return str(file)


@pytest.fixture(scope="module")
def judge(reviews, tmp_path_factory):
    recipe = {
        "env": {"id": "text_classification", "kwargs": {"data": reviews, "tokens": "words", "length": 16}},
        "agent": {
            "name": "supervised",
            "network": {"name": "encoder", "kwargs": {"layers": 1, "heads": 2, "width": 16}},
        },
        "source": {"name": "dataset", "batch_size": 32},
        "optim": {"lr": 0.01},
        "budget": {"frames": 1500},
        "eval": {"every": 0},
    }
    return rlcore.train(recipe, out=tmp_path_factory.mktemp("judge") / "run")


# Prompts with one right answer


def right(kind: str, prompt: str, answer: str) -> bool:
    """Whether an answer is right, found in another way than the task's."""
    if kind == "arithmetic":
        a, b = prompt.removesuffix("=").split("+")
        return int(a) + int(b) == int(answer) and str(int(answer)) == answer
    if kind == "sorting":
        rest = list(prompt.removesuffix(">"))
        for digit in answer:
            rest.remove(digit)
        return not rest and all(a <= b for a, b in itertools.pairwise(answer))
    shown = prompt.removesuffix(">")
    periods = [p for p in (2, 3) if all(shown[i] == shown[i + p] for i in range(len(shown) - p))]
    whole = shown + answer
    return len(answer) == 4 and all(whole[i] == whole[i + periods[0]] for i in range(len(whole) - periods[0]))


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 2**32))
def test_answers_are_right_and_held_out_prompts_unseen(kind, seed):
    splits = [
        texts(Prompts(1, split=split, kind=kind, n=300, data_seed=seed)) for split in ("train", "validation", "test")
    ]
    prompts = [prompt for split in splits for prompt, _ in split]
    assert len(prompts) == len(set(prompts))
    for prompt, answer in [pair for split in splits for pair in split]:
        assert right(kind, prompt, answer), (prompt, answer)


def test_prompts_by_hand():
    sums = dict(texts(Prompts(1, kind="arithmetic")))
    assert sums["85+63="] == "148"
    assert sums["7+1="] == "8"
    assert {len(prompt) for prompt in sums} == {4, 5, 6}
    assert dict(texts(Prompts(1, kind="sorting")))["592860>"] == "025689"
    assert dict(texts(Prompts(1, kind="pattern")))["gimgimgi>"] == "mgim"


def test_every_option_counts():
    assert max(len(p) for p, _ in texts(Prompts(1, kind="arithmetic", digits=3, n=200))) == len("999+999=")
    digits = {len(p) - 1 for p, _ in texts(Prompts(1, kind="sorting", min_length=4, max_length=6, n=200))}
    assert digits == {4, 5, 6}
    letters = {len(p) - 1 for p, _ in texts(Prompts(1, kind="pattern", min_length=3, max_length=5, n=200))}
    assert letters == {3, 4, 5}
    assert texts(Prompts(1, data_seed=1, n=50)) != texts(Prompts(1, data_seed=2, n=50))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("split", "reward"), [("train", "exact"), ("test", "graded")])
def test_prompts_conform(kind, split, reward):
    def make(num_envs, autoreset):
        return Prompts(num_envs, split=split, autoreset=autoreset, kind=kind, reward=reward, n=100)

    check_env(make, steps=12)


def test_prompts_show_by_themselves_where_they_end():
    env = Prompts(1, kind="arithmetic", n=100)
    equals = env.prepared.vocabulary.ids(["="])[0][0]
    assert (everything(env).obs[:, -1] == equals).all()
    assert torch.equal(Prompts.predictor(env.fitted()).encode([texts(env)[0][0]])[0], everything(env).obs[:1])


def test_rewards_of_a_played_sum():
    exact, graded = (Prompts(4, kind="arithmetic", reward=reward, group=4) for reward in ("exact", "graded"))
    prompts, _ = exact.reset(seed=5)
    graded.reset(seed=5)
    (prompt,) = set(exact.prepared.vocabulary.decode(prompts))
    a, b = map(int, prompt[:-1].split("+"))
    answer = str(a + b)
    wrong = answer[:-1] + str((int(answer[-1]) + 1) % 10)
    said = [answer, wrong, "", answer[::-1]]
    action = exact.prepared.vocabulary.encode(said, exact.spec.action_space.length, eos=True)
    assert exact.step(action).reward.tolist() == [float(text == answer) for text in said]
    expected = [
        sum(x == y for x, y in zip(text + "$", answer + "$", strict=False)) / (len(answer) + 1) for text in said
    ]
    assert graded.step(action).reward.tolist() == pytest.approx(expected)


# Continuations judged by a trained classifier


def test_a_judge_rewards_continuations(reviews, judge):
    options = {"kind": "sentiment", "data": reviews, "judge": str(judge.path), **OPENINGS, "group": 2}
    env = Prompts(4, **options)
    obs, _ = env.reset(seed=0)
    assert torch.equal(obs[0], obs[1])
    vocabulary = env.prepared.vocabulary
    said = ["warm heart lovely", "cold dull awful", "lovely fine", "awful"]
    step = env.step(vocabulary.encode(said, 3))
    logits = judge.choose(judge.predictor.encode(said)[0])
    expected = [math.exp(p) / (math.exp(p) + math.exp(n)) for n, p in logits.tolist()]  # negative, positive
    assert step.reward.tolist() == pytest.approx(expected, rel=1e-4)
    assert step.extras["is_success"].tolist() == [True, False, True, False]
    assert env.metrics(step.extras) == {}
    other = Prompts(4, **{**options, "label": "negative"})
    other.reset(seed=0)
    torch.testing.assert_close(other.step(vocabulary.encode(said, 3)).reward, 1 - step.reward)


def test_openings_of_reviews_are_prompts(reviews, judge):
    env = Prompts(2, kind="sentiment", data=reviews, judge=str(judge.path), **OPENINGS)
    assert {prompt for prompt, _ in texts(env)} == {"a fine and lovely", "a dull and awful"}
    assert {answer for _, answer in texts(env)} == {"film with a"}
    assert env.report()[0]["remarks"] == ["1 of 201 texts left out: not longer than 4 tokens"]
    fewer = Prompts(2, kind="sentiment", data=reviews, judge=str(judge.path), **OPENINGS, n=50)
    assert 30 < fewer.task.size < 50 < env.task.size


def test_judged_prompts_conform(reviews, judge):
    def make(num_envs, autoreset):
        return Prompts(num_envs, autoreset=autoreset, kind="sentiment", data=reviews, judge=str(judge.path), **OPENINGS)

    check_env(make, steps=6, num_envs=1)  # a network's last bits depend on how many texts it reads at once


# Classify and write


def labelled(reviews, **options):
    return {"data": reviews, "prompt_length": 6, "completion_length": 8, "tokens": "words", **options}


def test_openings_and_what_comes_next(reviews):
    env = ClassifyAndWrite(1, **labelled(reviews))
    obs, target = everything(env)
    vocabulary = env.data.openings.vocabulary
    assert isinstance(env.spec.obs_space, Tokens)
    assert type(env.spec.action_space) is spaces.MultiDiscrete
    assert env.spec.action_space.nvec.tolist() == [2] + [vocabulary.size] * 8
    read, written = vocabulary.decode(obs), vocabulary.decode(target[:, 1:])
    for opening, rest, label in zip(read, written, target[:, 0].tolist(), strict=True):
        good = env.data.labels[label] == "positive"
        whole = (GOOD if good else BAD).split(" number")[0]
        assert f"{opening} {rest}".startswith(whole)
        assert len(opening.split()) == 6
    ends = (target[:, 1:] == vocabulary.eos).sum(1)
    lengths = torch.tensor([len(rest.split()) for rest in written])
    assert torch.equal(ends == 1, lengths < 8)  # a text that is cut has no end


def test_no_text_is_in_two_splits(reviews):
    parts = ClassifyAndWrite(1, **labelled(reviews)).data.openings.parts
    rows = [row for part in parts.values() for row in part.tolist()]
    assert sorted(rows) == list(range(200))  # each once, and the short one nowhere


@pytest.mark.parametrize(("class_weight", "text_weight"), [(1.0, 1.0), (2.0, 0.5), (0.0, 1.0), (1.0, 0.0)])
def test_the_weighted_loss_against_a_slow_reference(reviews, class_weight, text_weight):
    env = ClassifyAndWrite(1, **labelled(reviews, class_weight=class_weight, text_weight=text_weight))
    _, target = env.task.draw(torch.arange(5))
    generator = torch.Generator().manual_seed(0)
    size = env.data.openings.vocabulary.size
    labels, tokens = torch.randn(5, 2, generator=generator), torch.randn(5, 8, size, generator=generator)
    slow = 0.0
    for i in range(5):
        counted = [j for j in range(8) if target[i, 1 + j] != 0]
        text = sum(-float(tokens[i, j].log_softmax(-1)[target[i, 1 + j]]) for j in counted) / 8
        slow += class_weight * -float(labels[i].log_softmax(-1)[target[i, 0]]) + text_weight * text
    assert env.spec.loss is not None
    total, count = env.spec.loss((labels, tokens), target)
    assert int(count) == 5
    assert float(total) == pytest.approx(slow, rel=1e-5)
    assert any((target[:, 1:] == 0).flatten())  # some are shorter than others


def test_the_label_alone_is_rewarded(reviews):
    env = ClassifyAndWrite(3, **labelled(reviews))
    env.reset(seed=0)
    target = env._example.target
    action = target.clone()
    action[1, 0] = 1 - action[1, 0]
    action[2, 1:] = action[2, 1:].roll(1)
    step = env.step(action)
    assert step.reward.tolist() == [1, 0, 1]
    assert step.extras["is_success"].tolist() == [True, False, True]
    metrics = env.metrics(step.extras)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert 2 / 3 <= metrics["token_accuracy"] < 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_classify_and_write_conforms(reviews, split):
    def make(num_envs, autoreset):
        return ClassifyAndWrite(num_envs, split=split, autoreset=autoreset, **labelled(reviews))

    check_env(make, steps=12)


def test_folds_of_reviews_share_them_out_by_label(reviews):
    held = []
    for fold in range(4):
        env = ClassifyAndWrite(1, split="test", **labelled(reviews, folds=4, fold=fold))
        assert all(24 <= n <= 26 for n in everything(env).target[:, 0].bincount().tolist())
        parts = {name: {*rows.tolist()} for name, rows in env.data.openings.parts.items()}
        assert set.union(*parts.values()) == {*range(200)} and sum(map(len, parts.values())) == 200  # without the short
        held += parts["test"]
    assert sorted(held) == [*range(200)]
    with pytest.raises(UserError, match=r"val_fraction \+ 1 / folds below 1"):
        ClassifyAndWrite(1, **labelled(reviews, folds=2, val_fraction=0.5))


def test_labels_beside_texts_have_a_confusion_matrix(reviews):
    env = ClassifyAndWrite(4, split="test", **labelled(reviews))
    env.reset(seed=0)
    action = env._example.target.clone()
    action[:, 0] = 0
    drawn = env.figures(env.step(action).extras)
    counts = [text.get_text() for text in drawn["confusion"].axes[0].texts]
    negative = int((everything(env).target[:4, 0] == 0).sum())
    assert counts == [str(negative), "0", str(4 - negative), "0"] and drawn.keys() == {"confusion"}


def test_one_agent_classifies_and_writes(reviews, tmp_path):
    recipe = {
        "env": {"id": "classify_and_write", "kwargs": labelled(reviews, prompt_length=8, completion_length=2)},
        "agent": {"name": "seq2seq", "network": {"name": "encoder_decoder"}},
        "source": {"name": "dataset", "batch_size": 32},
        "optim": {"lr": 0.005},
        "budget": {"frames": 4000},
        "eval": {"every": 0},
    }
    kwargs = {"layers": 1, "heads": 2, "width": 32}
    run = rlcore.train(recipe, out=tmp_path / "run", **{"agent.network.kwargs": kwargs})
    assert run.result["evaluation"]["accuracy"] == 1
    assert run.result["evaluation"]["token_accuracy"] == 1
    answers, remarks = rlcore.load(run.path).predict([BAD.format("z"), GOOD.format("y")])
    assert answers == [{"label": "negative", "text": "heart number"}, {"label": "positive", "text": "heart number"}]
    assert remarks == ["2 of 2 texts are longer than 8 tokens and were cut"]


# Bad input


def one_label(tmp_path):
    file = tmp_path / "one.csv"
    file.write_text("text,label\n" + "".join(f"some words that go on {i},x\n" for i in range(50)))
    return str(file)


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (lambda: Prompts(1, kind="arithmetics"), "env.kwargs.kind"),
        (lambda: Prompts(1, kind="sorting", min_length=9), "min_length at most max_length"),
        (lambda: Prompts(1, kind="pattern", min_length=2), "kind='pattern' with min_length of 3 or more"),
        (lambda: Prompts(1, kind="sentiment"), "judge=RUN beside kind='sentiment'"),
        (lambda: Prompts(1, judge="runs/x"), "judge=RUN beside kind='sentiment'"),
        (
            lambda: Prompts(1, kind="sentiment", judge="x"),
            "prompt_length and completion_length beside kind='sentiment'",
        ),
        (lambda: ClassifyAndWrite(1, class_weight=0, text_weight=0), "class_weight or text_weight above 0"),
        (lambda: ClassifyAndWrite(1, val_fraction=0.5, test_fraction=0.5), "val_fraction + test_fraction below 1"),
        (lambda: ClassifyAndWrite(1, data="no.csv"), "no.csv"),
    ],
)
def test_bad_keywords_get_one_sentence(action, sentence):
    with pytest.raises(UserError) as error:
        action()
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_texts_and_judges_get_one_sentence(reviews, judge, tmp_path):
    sentiment = {"kind": "sentiment", "data": reviews, "judge": str(judge.path), **OPENINGS}
    with pytest.raises(UserError, match=r"env\.kwargs\.label: 'positiv' is no label of .*did you mean 'positive'"):
        Prompts(1, **{**sentiment, "label": "positiv"})
    with pytest.raises(
        UserError, match=r"prompt_length: got 99, expected less: the longest of 201 texts has 13 tokens"
    ):
        Prompts(1, **{**sentiment, "prompt_length": 99})
    with pytest.raises(UserError, match="got the label 'x' only, expected at least two"):
        ClassifyAndWrite(1, **labelled(one_label(tmp_path), prompt_length=2))
    fitted = json.loads(json.dumps(ClassifyAndWrite(1, **labelled(reviews)).fitted()))
    with pytest.raises(UserError, match="text 2: got an empty text"):
        ClassifyAndWrite.predictor({**labelled(reviews), **fitted}).encode(["a", ""])


def test_a_judge_has_to_classify_texts(reviews, tmp_path):
    settings = {"env.id": "pairs", "env.kwargs": {"n": 50}, "agent.name": "seq2seq", "source.name": "dataset"}
    network = {"name": "text_gru", "kwargs": {"width": 8}}
    run = rlcore.train({}, out=tmp_path / "run", **settings, **{"agent.network": network, "budget.frames": 32})
    with pytest.raises(UserError, match="classifies no texts; expected a run of text_classification"):
        Prompts(1, kind="sentiment", data=reviews, judge=str(run.path), **OPENINGS)
