"""Tasks whose action is a completion: rewards, groups, splits, prediction; generated pairs and translation."""

from __future__ import annotations

import datetime
import gzip
import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.completions import ended, exact, graded
from envs.pairs import Pairs, number_words, written_dates
from envs.translation import Translation, bleu
from rlcore.errors import UserError
from rlcore.spaces import Tokens
from rlcore.testing import check_env

PAD, UNK, BOS, EOS = range(4)
SMALL = {"kind": "reversal", "n": 60, "max_length": 5}
VERSES = [
    ("The dog sleeps.", "El perro duerme."),
    ("A cat eats fish.", "Un gato come pescado."),
    ("She reads a book.", "Ella lee un libro."),
    ("We walk home.", "Caminamos a casa."),
]


def everything(env):
    return env.task.draw(torch.arange(env.task.size))


def texts(env) -> list[tuple[str, str]]:
    """Return the prompts and answers of a split as text."""
    prompts, answers = everything(env)
    vocabulary = env.prepared.vocabulary
    return list(zip(vocabulary.decode(prompts), vocabulary.decode(answers), strict=True))


def write(env, answers: list[str]) -> torch.Tensor:
    return env.prepared.vocabulary.encode(answers, env.spec.action_space.length, eos=True)


@pytest.fixture
def verses(tmp_path):
    file = tmp_path / "verses.tsv"
    rows = [(f"{a} {i}", f"{b} {i}") for i in range(20) for a, b in VERSES]
    file.write_text("".join(f"{a}\t{b}\tnotes\n" for a, b in rows))
    return str(file)


# Rewards


def test_a_completion_ends_at_its_first_end():
    written = torch.tensor([[5, EOS, 6, EOS], [5, 6, 7, 8], [EOS, 5, 6, 7], [5, PAD, EOS, 6]])
    assert ended(written, EOS, PAD).tolist() == [[5, EOS, PAD, PAD], [5, 6, 7, 8], [EOS, 0, 0, 0], [5, PAD, EOS, PAD]]


def test_rewards_by_hand():
    target = torch.tensor([[5, 6, EOS, PAD, PAD]]).expand(6, 5)
    written = torch.tensor(
        [
            [5, 6, EOS, PAD, PAD],
            [5, 7, EOS, PAD, PAD],
            [5, 6, 7, EOS, PAD],
            [EOS, PAD, PAD, PAD, PAD],
            [6, 5, EOS, PAD, PAD],
            [5, PAD, PAD, PAD, EOS],
        ]
    )
    assert exact(written, target).tolist() == [1, 0, 0, 0, 0, 0]
    torch.testing.assert_close(graded(written, target, PAD), torch.tensor([1, 2 / 3, 2 / 4, 0, 1 / 3, 1 / 5]))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), min_size=7, max_size=7), min_size=1, max_size=5), st.data())
def test_rewards_equal_a_slow_reference(written, data):
    env = Pairs(2, **SMALL, reward="graded")
    target = everything(env).target[: len(written)]
    written = [row[: target.shape[1]] for row in written]
    for row in data.draw(st.sets(st.integers(0, len(written) - 1))):  # some right ones, with rubbish after their end
        length = int((target[row] != PAD).sum())
        written[row] = target[row].tolist()[:length] + written[row][length:]
    for i, reward in enumerate(env.task.reward(torch.tensor(written), target).tolist()):
        ours, wanted = cut(written[i]), cut(target[i].tolist())
        right = sum(a == b for a, b in zip(ours, wanted, strict=False))
        assert reward == pytest.approx(right / max(len(ours), len(wanted)))
        outcome = env.task.outcome(torch.tensor(written), target)
        assert bool(outcome["is_success"][i]) == (ours == wanted) == (reward == 1)


def cut(row: list[int]) -> list[int]:
    """Return a completion with its end, without what follows it or padding at the end."""
    row = row[: row.index(EOS) + 1] if EOS in row else row
    while row and row[-1] == PAD:
        row = row[:-1]
    return row


def test_a_step_rewards_what_was_written():
    env = Pairs(3, **SMALL)
    obs, _ = env.reset(seed=1)
    prompts = env.prepared.vocabulary.decode(obs)
    step = env.step(write(env, [prompts[0][::-1], prompts[1], prompts[2][:0:-1]]))
    assert step.reward.tolist() == [1, float(prompts[1] == prompts[1][::-1]), 0]
    assert step.extras["is_success"].tolist() == (step.reward > 0).tolist()
    assert env.metrics(step.extras)["exact"] == pytest.approx(float(step.reward.mean()))


def test_metrics_by_hand():
    env = Pairs(1, **SMALL)
    target = torch.tensor([[5, 6, EOS, PAD], [7, EOS, PAD, PAD]])
    outcome = env.task.outcome(torch.tensor([[5, 6, EOS, 9], [7, 8, EOS, PAD]]), target)
    assert env.task.metrics(outcome) == pytest.approx({"exact": 0.5, "token_accuracy": (1 + 1 / 3) / 2})


def test_the_loss_counts_no_padding():
    env = Pairs(1, **SMALL)
    _, target = everything(env)
    size, length = env.spec.action_space.vocabulary, env.spec.action_space.length
    assert env.spec.loss is not None
    logits = torch.randn(len(target), length, size, generator=torch.Generator().manual_seed(0))
    total, count = env.spec.loss(logits, target)
    chosen = [(i, j) for i in range(len(target)) for j in range(length) if target[i, j] != PAD]
    slow = -sum(float(logits[i, j].log_softmax(-1)[target[i, j]]) for i, j in chosen)
    assert int(count) == len(chosen) < target.numel()
    assert float(total) == pytest.approx(slow, rel=1e-5)


# Spaces and layout


def test_prompts_are_padded_on_the_left_and_completions_on_the_right():
    env = Pairs(1, **SMALL)
    prompts, answers = everything(env)
    assert isinstance(env.spec.obs_space, Tokens)
    assert isinstance(env.spec.action_space, Tokens)
    assert prompts.shape[1] == env.spec.obs_space.length == 6  # five letters and an end
    assert answers.shape[1] == env.spec.action_space.length == 6
    assert env.spec.obs_space.vocabulary == env.spec.action_space.vocabulary == env.prepared.vocabulary.size
    assert (prompts[:, -1] == EOS).all()
    for row in (prompts != PAD).tolist():
        assert row == sorted(row)
    for row in answers.tolist():
        assert row.count(EOS) == 1
        assert all(token == PAD for token in row[row.index(EOS) + 1 :])


def test_what_is_too_long_is_left_out():
    every, short = Pairs(1, **SMALL), Pairs(1, **SMALL, completion_length=5)
    assert texts(short) == [pair for pair in texts(every) if len(pair[1]) < 5]
    assert (everything(short).target == EOS).any(1).all()
    assert "examples left out: longer than 6 or 5 tokens" in short.report()[1]


@pytest.mark.parametrize("kind", ["reversal", "dates", "number_words"])
@pytest.mark.parametrize("tokens", ["chars", "words"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_pairs_conform(kind, tokens, split):
    def make(num_envs, autoreset):
        return Pairs(num_envs, split=split, autoreset=autoreset, kind=kind, tokens=tokens, n=100)

    check_env(make, steps=12)


@pytest.mark.parametrize("split", ["train", "test"])
def test_translation_conforms(verses, split):
    def make(num_envs, autoreset):
        return Translation(num_envs, split=split, autoreset=autoreset, path=verses, tokens="words", reward="graded")

    check_env(make, steps=12)


# Groups


def test_a_group_shows_one_prompt_and_other_groups_show_others():
    env = Pairs(12, kind="reversal", n=2000, group=4)
    obs, _ = env.reset(seed=7)
    alone = Pairs(3, kind="reversal", n=2000)
    singles, _ = alone.reset(seed=[7, 11, 15])
    assert "group" in env.spec.extras
    assert "group" not in alone.spec.extras
    shown = []
    for _ in range(20):
        assert torch.equal(obs, singles.repeat_interleave(4, 0))  # the streams of the groups' first seeds
        shown += [tuple(row) for row in singles.tolist()]
        step, single = env.step(torch.zeros_like(obs)), alone.step(torch.zeros_like(singles))
        assert step.extras["group"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert set(step.extras) == env.spec.extras
        obs, singles = step.obs, single.obs
    assert max(Counter(shown).values()) <= 2  # 60 prompts of 1600: hardly one twice


@pytest.mark.parametrize("autoreset", ["same_step", "next_step", "disabled"])
def test_groups_go_on_exactly_from_a_capture(autoreset):
    def make():
        return Pairs(6, kind="reversal", n=500, group=3, autoreset=autoreset)

    env, fresh = make(), make()
    action = torch.zeros(6, env.spec.action_space.length, dtype=torch.int64)
    env.reset(seed=3)
    for _ in range(4):
        env.step(action)
        if autoreset == "disabled":
            env.reset(mask=torch.ones(6, dtype=torch.bool))
    fresh.reset(seed=99)
    fresh.restore(json.loads(json.dumps(env.capture())))
    for _ in range(50):
        a, b = env.step(action), fresh.step(action)
        assert torch.equal(a.obs, b.obs)
        assert torch.equal(a.extras["target"], b.extras["target"])
        assert torch.equal(a.obs[:1].expand(3, -1), a.obs[:3])
        assert torch.equal(a.obs[3:4].expand(3, -1), a.obs[3:])


def test_evaluation_knows_no_groups():
    plain, grouped = (Pairs(5, split="test", kind="reversal", n=500, group=group) for group in (1, 4))
    assert grouped.spec.extras == plain.spec.extras
    assert torch.equal(grouped.reset(seed=0)[0], plain.reset(seed=0)[0])
    assert grouped.episodes == plain.episodes == grouped.task.size


def test_groups_have_to_be_whole():
    with pytest.raises(UserError, match=r"env\.num_envs: got 6, expected a multiple of env\.kwargs\.group=4"):
        Pairs(6, **SMALL, group=4)


# Splits


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["reversal", "dates", "number_words"]), st.integers(0, 2**32))
def test_held_out_prompts_are_unseen_and_answers_are_right(kind, seed):
    splits = {}
    for split in ("train", "validation", "test"):
        env = Pairs(1, split=split, kind=kind, n=300, data_seed=seed)
        splits[split] = texts(env)
    prompts = [prompt for split in splits.values() for prompt, _ in split]
    assert len(prompts) == len(set(prompts))  # in no split twice, in no two splits
    assert len(splits["train"]) > 4 * len(splits["test"])
    for prompt, answer in splits["train"] + splits["test"]:
        if kind == "reversal":
            assert answer == prompt[::-1]
        elif kind == "dates":
            assert prompt in written_dates(datetime.date.fromisoformat(answer))
        elif "[UNK]" not in answer:
            assert answer == number_words(int(prompt))


def test_a_prompt_keeps_its_split_whatever_else_is_drawn():
    few = {p for p, _ in texts(Pairs(1, kind="number_words", largest=99, n=200))}
    held = {p for p, _ in texts(Pairs(1, split="test", kind="number_words", largest=99, n=2000, data_seed=5))}
    assert few
    assert held
    assert not few & held


# Generated pairs


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (7, "seven"),
        (10, "ten"),
        (13, "thirteen"),
        (20, "twenty"),
        (85, "eighty five"),
        (100, "one hundred"),
        (110, "one hundred ten"),
        (999, "nine hundred ninety nine"),
        (1000, "one thousand"),
        (4217, "four thousand two hundred seventeen"),
        (10_001, "ten thousand one"),
        (600_040, "six hundred thousand forty"),
        (1_000_000, "one million"),
        (12_345_678, "twelve million three hundred forty five thousand six hundred seventy eight"),
    ],
)
def test_numbers_in_words(number, words):
    assert number_words(number) == words


def test_numbers_in_words_read_back():
    values = {number_words(n): n for n in range(20)} | {number_words(n): n for n in range(20, 100, 10)}

    def value(words: str) -> int:
        total = part = 0
        for word in words.split():
            if word in ("thousand", "million"):
                total, part = total + part * (1000 if word == "thousand" else 10**6), 0
            else:
                part = part * 100 if word == "hundred" else part + values[word]
        return total + part

    numbers = [*range(1200), *range(1200, 10**9, 7_654_321)]
    assert [value(number_words(n)) for n in numbers] == numbers


def test_dates_in_every_manner():
    assert written_dates(datetime.date(1987, 3, 5)) == [
        "March 5, 1987",
        "5 March 1987",
        "Thursday, March 5, 1987",
        "Mar 5 1987",
        "5.3.1987",
    ]


def test_letters_and_digits_stay_single_among_words():
    env = Pairs(1, kind="number_words", tokens="words", n=50)
    assert all(prompt == " ".join(prompt.replace(" ", "")) for prompt, _ in texts(env))
    assert dict(texts(env))["6 7 3 2 6 5"] == "six hundred seventy three thousand two hundred sixty five"
    assert all(a == b[::-1] for a, b in texts(Pairs(1, tokens="words", n=50)))


def test_every_manner_length_and_number_of_digits_occurs():
    dates = {p for p, _ in texts(Pairs(1, kind="dates", n=500))}
    assert {"," in p for p in dates} == {True, False}
    assert {p[0].isdigit() for p in dates} == {True, False}
    assert {len(p) for p, _ in texts(Pairs(1, **SMALL))} == {3, 4, 5}
    lengths = Counter(len(p) for p, _ in texts(Pairs(1, kind="number_words", n=3000, largest=4_999)))
    assert max(lengths) == 4
    assert max(int(p) for p, _ in texts(Pairs(1, kind="number_words", n=3000, largest=4_999))) in range(4900, 5000)


# Translation


def test_translation_reads_two_columns(verses):
    env = Translation(1, path=verses, tokens="chars")
    assert ("The dog sleeps. 3", "El perro duerme. 3") in texts(env)
    lower = Translation(1, path=verses, tokens="chars", lower=True)
    assert ("the dog sleeps. 3", "el perro duerme. 3") in texts(lower)


def test_the_vocabulary_has_seen_the_training_split_only(tmp_path):
    file = tmp_path / "letters.tsv"
    file.write_text("".join(f"{chr(0x4E00 + i)}\t{chr(0x5E00 + i)}\n" for i in range(200)))
    env = Translation(1, path=str(file), tokens="chars")
    assert all(UNK not in row for row in torch.cat([*everything(env)], 1).tolist())
    assert (everything(Translation(1, split="test", path=str(file), tokens="chars")).obs[:, 0] == UNK).all()


def test_a_changed_file_is_read_again(verses):
    before = Translation(1, path=verses, tokens="chars").task.size
    with open(verses, "a") as file:
        file.writelines(f"Something new {i}\tAlgo nuevo {i}\n" for i in range(50))
    assert Translation(1, path=verses, tokens="chars").task.size > before


def test_the_shipped_verses():
    env = Translation(4, vocabulary_size=600, prompt_length=64, completion_length=64)
    values, text = env.report()
    assert values["examples"]["train"] == env.task.size > 1000
    assert "left out: their prompts had occurred" in text
    assert "left out: longer than 64 or 64 tokens" in text
    assert env.spec.obs_space.length == 64
    assert env.prepared.vocabulary.size == 600
    assert "abraham" in texts(env)[0][0].lower()


def test_bleu_is_that_of_sacrebleu(verses):
    from sacrebleu.metrics.bleu import BLEU

    env = Translation(8, split="test", path=verses, tokens="words")
    wanted = [answer for _, answer in texts(env)]
    written = [" ".join(answer.split()[1:]) if i % 2 else answer for i, answer in enumerate(wanted)]
    outcome = env.task.outcome(write(env, written), everything(env).target)
    ours = env.metrics(outcome)
    assert 0 < ours["bleu"] < 100
    assert ours["bleu"] == pytest.approx(BLEU().corpus_score(written, [wanted]).score)
    assert ours["exact"] == pytest.approx((len(wanted) + 1) // 2 / len(wanted))
    assert bleu(wanted, wanted) == pytest.approx(100)


# Prediction and what is saved


def test_a_saved_vocabulary_and_lengths_predict_without_the_data(verses):
    env = Translation(1, path=verses, tokens="chars", prompt_length=30, group=1)
    fitted = json.loads(json.dumps(env.fitted()))
    predictor = Translation.predictor({"path": "gone.tsv", "tokens": "chars", **fitted})
    assert repr(predictor.spec.obs_space) == repr(env.spec.obs_space)
    assert repr(predictor.spec.action_space) == repr(env.spec.action_space)
    (prompt, answer), row = texts(env)[0], 0
    obs, remarks = predictor.encode([prompt])
    assert remarks == []
    assert torch.equal(obs[0], everything(env).obs[row])
    assert predictor.decode(everything(env).target[:1]) == [answer]
    again = Translation(1, **{"path": verses, "tokens": "chars", **fitted})
    assert torch.equal(everything(again).target, everything(env).target)


def test_prompts_come_from_a_file_too(tmp_path):
    env = Pairs(1, **SMALL)
    predictor = Pairs.predictor({**SMALL, **env.fitted()})
    file = tmp_path / "prompts.txt"
    file.write_text("abc\ndé\n")
    obs, remarks = predictor.encode(file)
    assert torch.equal(obs, predictor.encode(["abc", "dé"])[0])
    assert remarks == ["prompt 2: 1 of 2 tokens are unknown to training"]


# Bad input


def predictor():
    return Pairs.predictor({**SMALL, **Pairs(1, **SMALL).fitted()})


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (lambda: Pairs(1, kind="reversals"), "env.kwargs.kind"),
        (lambda: Pairs(1, min_length=9, max_length=3), "min_length at most max_length"),
        (lambda: Pairs(1, tokens="bpe"), "env.kwargs.tokens"),
        (lambda: Pairs(1, val_fraction=0.6, test_fraction=0.6), "val_fraction + test_fraction below 1"),
        (lambda: Pairs(1, lenght=3), "env.kwargs.lenght"),
        (lambda: Pairs(1, prompt_length=2, **SMALL), "no example to train on with prompts of at most 2 tokens"),
        (lambda: Pairs(1, split="test", **SMALL, test_fraction=0), "the test split is empty"),
        (lambda: Translation(1, path="nowhere.tsv"), "nowhere.tsv: got No such file or directory, expected a TSV file"),
        (lambda: predictor().encode(["abcdefgh"]), "prompt 1, 'abcdefgh': got 8 tokens, expected 1 to 5"),
        (lambda: predictor().encode(["abc", ""]), "prompt 2, '': got 0 tokens, expected 1 to 5"),
    ],
)
def test_bad_input_gets_one_sentence(action, sentence):
    with pytest.raises(UserError) as error:
        action()
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "the file is empty"),
        ("a\tb\nno tab here\n", "line 2: expected two texts with a tab between, got 'no tab here'"),
        ("a\tb\nc\t \n", "line 2: expected two texts with a tab between"),
    ],
)
def test_a_bad_file_of_sentences_gets_one_sentence(tmp_path, content, sentence):
    file = tmp_path / "bad.tsv.gz"
    file.write_bytes(gzip.compress(content.encode()))
    with pytest.raises(UserError, match=sentence):
        Translation(1, path=str(file))
