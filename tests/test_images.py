"""Classification of images: where they come from, the split, the task, prediction; and augmentation by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chisquare
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

import rlcore
from envs.augment_images import augmentation
from envs.images import Images, stratified
from rlcore.errors import UserError
from rlcore.testing import check_agent, check_env
from rlcore.types import Example

TINY: dict[str, Any] = {"name": "small_cnn", "kwargs": {"width": 4, "stages": 1, "features": 8}}


def picture(path: Path, pixels: Any, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8), mode).save(path)


def pictures(folder: Path, counts: dict[str, int], shape: tuple[int, ...] = (4, 6, 3)) -> Path:
    """Write pictures of random pixels, each class in shades of its own."""
    rng = np.random.default_rng(0)
    for k, (name, count) in enumerate(counts.items()):
        for i in range(count):
            picture(folder / name / f"{i:03}.png", rng.integers(60 * k, 60 * k + 60, shape))
    return folder


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return pictures(tmp_path / "animals", {"cat": 20, "dog": 30, "eel": 10})


# --- Where pictures come from ---


def test_digits_are_scikit_learns() -> None:
    data: Any = load_digits()
    env = Images(1, val_fraction=0.0, test_fraction=0.0)
    drawn = env.task.draw(torch.arange(1797))
    assert drawn.obs.dtype == torch.uint8 and drawn.obs.shape == (1797, 8, 8, 1)
    assert torch.equal((drawn.obs[..., 0] * (16 / 255)).round(), torch.as_tensor(data.images).float())
    assert torch.equal(drawn.target, torch.as_tensor(data.target))
    assert env.spec.obs_space.shape == (8, 8, 1) and env.spec.action_space.shape == (10,)
    assert Images(1, size=[16, 12], mode="rgb").reset(0)[0].shape == (1, 16, 12, 3)


def test_a_folder_is_read_in_order_whatever_its_files_are(tmp_path: Path) -> None:
    grey = np.arange(24).reshape(4, 6) * 10
    picture(tmp_path / "b" / "deep" / "x.png", grey)
    picture(tmp_path / "b" / "y.PNG", np.stack([grey, grey + 1, grey + 2], -1))
    picture(tmp_path / "a" / "z.bmp", np.full((4, 6, 4), 7), "RGBA")
    Image.fromarray((grey * 256 + 99).astype(np.uint16)).save(tmp_path / "a" / "deep.tif")  # 16 bits
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "readme.md").write_text("no class")
    env = Images(1, path=str(tmp_path), mode="rgb", val_fraction=0.0, test_fraction=0.0)
    obs, target = env.task.draw(torch.arange(4))
    assert env.data.classes == ["a", "b"] and target.tolist() == [0, 0, 1, 1]
    x = torch.as_tensor(grey, dtype=torch.uint8)
    assert torch.equal(obs[0], x[..., None].expand(4, 6, 3))
    assert torch.equal(obs[1], torch.full((4, 6, 3), 7, dtype=torch.uint8))
    assert torch.equal(obs[2], x[..., None].expand(4, 6, 3))
    assert torch.equal(obs[3], torch.stack([x, x + 1, x + 2], -1))
    assert env.task.item(3) == str(tmp_path / "b" / "y.PNG")
    assert Images(1, path=str(tmp_path), mode="grey", val_fraction=0.0, test_fraction=0.0).data.shape == (4, 6, 1)


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    for name in "ab":
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "x.png", exif=exif)
    env = Images(1, path=str(tmp_path), val_fraction=0.0, test_fraction=0.0)
    assert torch.equal(env.reset(0)[0][0, ..., 0], torch.arange(24, dtype=torch.uint8).view(4, 6).rot90(-1))


def test_pictures_of_other_sizes_are_stretched(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", np.full((9, 3), 50))
    picture(tmp_path / "b" / "1.png", np.full((2, 2), 60))
    env = Images(1, path=str(tmp_path), size=[5, 4], val_fraction=0.0, test_fraction=0.0)
    assert env.task.draw(torch.arange(2)).obs.flatten(1).unique(dim=1).tolist() == [[50], [60]]
    assert env.data.shape == (5, 4, 1)
    with pytest.raises(UserError, match=r"1.png: has 2 x 2 pixels, others 9 x 3; expected env.kwargs.size"):
        Images(1, path=str(tmp_path))


@pytest.mark.parametrize("memory", ["always", "never"])
def test_unreadable_files_are_left_out_and_counted(animals: Path, memory: str) -> None:
    whole = (animals / "cat" / "000.png").read_bytes()
    (animals / "cat" / "003.png").write_bytes(whole[: len(whole) // 2])
    (animals / "dog" / "001.png").write_bytes(b"")
    (animals / "dog" / "100.jpg").write_text("<html>not found</html>")
    env = Images(1, path=str(animals), memory=memory)
    values, text = env.report()
    bad = [str(animals / name) for name in ("cat/003.png", "dog/001.png", "dog/100.jpg")]
    assert values["unreadable"] == bad and values["images"] == 58
    assert "3 files left out, unreadable" in text and all(name in text for name in bad)
    assert values["classes"]["cat"] == {"train": 13, "validation": 2, "test": 4}
    assert values["streamed"] == (memory == "never")
    assert env.task.draw(torch.arange(env.task.size)).obs.shape == (env.task.size, 4, 6, 3)


def test_bad_folders_get_one_sentence(tmp_path: Path, animals: Path) -> None:
    def refused(match: str, **kwargs: Any) -> None:
        with pytest.raises(UserError, match=match) as caught:
            Images(1, **kwargs)
        assert "\n" not in str(caught.value)

    refused(r"env.kwargs.path: got '/no', expected 'digits' or a folder", path="/no")
    (tmp_path / "empty").mkdir()
    refused("empty: expected one folder of images for each of two or more classes, got 0", path=str(tmp_path / "empty"))
    (animals / "yak").mkdir()
    refused("yak: class 'yak' is empty, expected images", path=str(animals))
    (animals / "yak" / "x.png").write_text("?")
    refused("yak: no image of class 'yak' can be read, of 1", path=str(animals))
    picture(tmp_path / "few" / "a" / "1.png", np.zeros((2, 2)))
    picture(tmp_path / "few" / "b" / "1.png", np.zeros((2, 2)))
    refused(r"the validation split is empty: 2 .* are too few", path=str(tmp_path / "few"))
    refused(r"env.kwargs.pth is not a setting; did you mean 'path'\?", pth="x")
    refused("env.kwargs.size: got .*, expected positive", size=[0, 3])
    refused("expected val_fraction . test_fraction below 1", val_fraction=0.5, test_fraction=0.5)
    refused("expected no loss, label_smoothing or augment beside bandit", bandit=True, augment=[{"name": "flip"}])
    refused("expected loss=CrossEntropyLoss beside label_smoothing", loss="MultiMarginLoss", label_smoothing=0.1)
    refused(
        r"env.kwargs.augment\[0\].name: augmentation 'flp' is unknown; did you mean 'flip'\?", augment=[{"name": "flp"}]
    )
    refused(r"env.kwargs.augment\[1\].q is not a setting", augment=[{"name": "flip"}, {"name": "flip", "q": 1}])
    refused(r"env.kwargs.augment\[0\].p: got 2, expected", augment=[{"name": "flip", "p": 2}])
    refused(r"env.kwargs.augment\[0\]: got {'p': 1}, expected a name", augment=[{"p": 1}])


# --- The split ---


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=2, max_size=8), st.integers(0, 9), st.floats(0.05, 0.4), st.floats(0.05, 0.4)
)
def test_every_class_has_its_share_of_every_part(counts: list[int], seed: int, validation: float, test: float) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    n = len(labels)
    rest = n - round(n * test)
    assume(0 < math.floor(rest * validation / (1 - test) + 0.5) < rest < n)  # else a part would be empty
    parts = stratified(labels, validation, test, seed)
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(n))
    for k, count in enumerate(counts):
        held = {name: int((labels[rows] == k).sum()) for name, rows in parts.items()}
        assert abs(held["test"] - count * test) < 1
        rest = count - held["test"]
        assert abs(held["validation"] - rest * validation / (1 - test)) < 1


def test_which_rows_of_a_class_are_held_out_is_random() -> None:
    labels = np.repeat(np.arange(3), 20)
    counts = sum(np.isin(np.arange(60), stratified(labels, 0.1, 0.25, seed)["test"]).astype(int) for seed in range(400))
    assert chisquare(counts).pvalue > 1e-3
    one, other = (stratified(labels, 0.1, 0.25, seed)["test"] for seed in (1, 2))
    assert np.array_equal(one, stratified(labels, 0.1, 0.25, 1)["test"]) and not np.array_equal(one, other)


# --- The task ---


@pytest.mark.parametrize("kwargs", [{}, {"bandit": True}], ids=["logits", "bandit"])
def test_digits_conform(kwargs: dict[str, Any]) -> None:
    check_env("images", steps=20, kwargs=kwargs)


def test_a_streamed_folder_conforms(animals: Path) -> None:
    check_env("images", steps=12, kwargs={"path": str(animals), "memory": "never"})


def test_agents_of_images_conform() -> None:
    recipe = {
        "env": {"id": "images", "kwargs": {"augment": [{"name": "crop", "padding": 1}], "label_smoothing": 0.1}},
        "agent": {"name": "supervised", "network": TINY},
        "source": {"batch_size": 16},
        "optim": {"lr": 0.01},
    }
    check_agent(recipe)


def test_the_reward_is_minus_the_loss_smoothed() -> None:
    env = Images(4, label_smoothing=0.2)
    torch.manual_seed(0)
    logits, target = torch.randn(4, 10), torch.tensor([3, 0, 9, 9])
    log_p = logits.log_softmax(-1)
    by_hand = [0.8 * log_p[i, t] + 0.2 * log_p[i].mean() for i, t in enumerate(target.tolist())]
    assert torch.allclose(env.task.reward(logits, target), torch.stack(by_hand), atol=1e-6)
    assert env.spec.loss is not None
    total, count = env.spec.loss(logits, target)
    assert torch.allclose(total, -torch.stack(by_hand).sum(), atol=1e-5) and count == 4
    assert Images(1, bandit=True).task.reward(torch.tensor([3, 1]), torch.tensor([3, 0])).tolist() == [1.0, 0.0]


def test_outcomes_say_which_picture_was_shown(animals: Path) -> None:
    env = Images(5, split="test", path=str(animals))
    obs, _ = env.reset(seed=7)
    for _ in range(3):
        step = env.step(torch.zeros(5, 3))
        for row, x, target in zip(step.extras["row"].tolist(), obs, step.extras["target"].tolist(), strict=True):
            path = env.task.item(row)
            assert torch.equal(torch.from_numpy(np.array(Image.open(path))), x)
            assert Path(path).parent.name == env.data.classes[target]
        obs = step.obs
    fake = Images(2, split="test", path=str(animals), autoreset="next_step")
    fake.reset(seed=0)
    assert [fake.step(torch.zeros(2, 3)).extras["row"].tolist() for _ in range(3)] == [[0, 1], [0, 1], [1, 2]]


def test_metrics_by_hand() -> None:
    env = Images(1, split="test")
    target = torch.tensor([0, 0, 1, 2])
    chosen = torch.tensor([0, 1, 1, 2])
    values = env.metrics({"prediction": 5 * F.one_hot(chosen, 10).float(), "target": target})
    assert values["accuracy"] == 0.75
    assert Images(1, bandit=True).metrics({"prediction": chosen, "target": target}) == {"accuracy": 0.75}


def test_a_run_names_pictures_without_its_data(animals: Path, tmp_path: Path) -> None:
    recipe = {
        "env": {"id": "images", "kwargs": {"path": str(animals)}},
        "agent": {"name": "supervised", "network": TINY},
        "source": {"batch_size": 8},
        "budget": {"frames": 1200},
        "optim": {"lr": 0.01},
        "eval": {"every": 0},
    }
    run = rlcore.train(recipe, out=tmp_path / "run")
    new = pictures(tmp_path / "new", {"?": 1, "??": 1, "???": 1})
    animals.rename(tmp_path / "gone")
    loaded = rlcore.load(tmp_path / "run")
    answers, remarks = loaded.predict(new)
    assert answers == ["cat", "dog", "eel"] and "3 images, in order: ?/000.png, ??/000.png" in remarks[0]
    assert loaded.predict(str(new / "???" / "000.png")) == (["eel"], [])
    assert loaded.predict([new / "??" / "000.png", new / "?" / "000.png"])[0] == ["dog", "cat"]
    (new / "bad.png").write_text("?")
    with pytest.raises(UserError, match=r"bad\.png: expected an image that can be read"):
        loaded.predict(new / "bad.png")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: expected image files"):
        loaded.predict(tmp_path / "none")
    # Fewer classes and another size: what the run was trained with holds.
    pictures(tmp_path / "more", {"dog": 12, "eel": 12}, (8, 8, 3))
    more = rlcore.train({**recipe, "env": {"id": "images", "kwargs": {"path": str(tmp_path / "more")}}},
                        out=tmp_path / "run2", init=run.path, **{"budget.frames": 8})  # fmt: skip
    assert more.spec == loaded.spec._replace(loss=more.spec.loss, extras=more.spec.extras)
    pictures(tmp_path / "more", {"ox": 5}, (8, 8, 3))
    with pytest.raises(UserError, match="class 'ox' is unknown to the saved run; known: cat, dog, eel"):
        rlcore.train({**recipe, "env": {"id": "images", "kwargs": {"path": str(tmp_path / "more")}}}, init=run.path)


# --- Augmentation ---

SOME = torch.randint(0, 256, (6, 5, 7, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def apply(name: str, images: Tensor = SOME, seed: int = 0, **options: Any) -> Tensor:
    return augmentation([{"name": name, **options}], "augment")(images, torch.Generator().manual_seed(seed))


STRONG: dict[str, dict[str, Any]] = {
    "flip": {"p": 0.5}, "crop": {"padding": 3}, "rotate": {"degrees": 90.0}, "color": {"brightness": 1.0},
    "noise": {"std": 0.3}, "cutout": {"size": 3},
}  # fmt: skip
NONE: dict[str, dict[str, Any]] = {
    "flip": {"p": 0.0}, "crop": {"padding": 0}, "rotate": {"degrees": 0.0},
    "color": {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}, "noise": {"std": 0.0}, "cutout": {"size": 0},
}  # fmt: skip


@pytest.mark.parametrize("name", STRONG)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_augmentation_is_seeded_changes_every_image_by_itself_and_at_no_strength_nothing(
    name: str, channels: int
) -> None:
    images = SOME[..., :channels]
    before = images.clone()
    same = images[:1].expand(64, -1, -1, -1)
    changed = apply(name, same, **STRONG[name])
    assert changed.dtype == torch.uint8 and changed.shape == same.shape
    assert len(changed.flatten(1).unique(dim=0)) >= (2 if name == "flip" else 20)
    assert torch.equal(changed, apply(name, same, **STRONG[name]))
    assert not torch.equal(changed, apply(name, same, seed=1, **STRONG[name]))
    assert torch.equal(apply(name, images, **NONE[name]), images)
    assert torch.equal(images, before)


def test_a_flip_mirrors_and_twice_is_nothing() -> None:
    assert torch.equal(apply("flip", p=1.0), torch.stack([torch.fliplr(x) for x in SOME]))
    assert torch.equal(apply("flip", p=1.0, axis="vertical"), torch.stack([torch.flipud(x) for x in SOME]))
    assert torch.equal(apply("flip", apply("flip", p=1.0), p=1.0), SOME)
    flipped = (apply("flip", SOME[:1].expand(4000, -1, -1, -1), p=0.3) != SOME[0]).flatten(1).any(1)
    assert abs(float(flipped.double().mean()) - 0.3) < 0.03


def test_crops_are_shifts_all_equally_likely() -> None:
    pad, n = 1, 9000
    image = SOME[0, :4, :4]
    framed = F.pad(image, (0, 0, pad, pad, pad, pad))
    shifts = [framed[i : i + 4, j : j + 4] for i in range(3) for j in range(3)]
    cut = apply("crop", image.expand(n, -1, -1, -1), padding=pad)
    hits = torch.stack([(cut == shift).flatten(1).all(1) for shift in shifts])  # (9, n)
    assert (hits.sum(0) == 1).all()
    assert chisquare(hits.sum(1).numpy()).pvalue > 1e-3


def test_rotation_follows_a_slow_reference() -> None:
    degrees, (h, w) = 70.0, SOME.shape[1:3]
    u = torch.rand(len(SOME), 1, generator=torch.Generator().manual_seed(3))[:, 0]
    expected = torch.zeros(SOME.shape)
    for b, angle in enumerate(((2 * u - 1) * degrees).deg2rad().tolist()):
        for y in range(h):
            for x in range(w):
                dx, dy = x - (w - 1) / 2, y - (h - 1) / 2
                from_x = math.cos(angle) * dx - math.sin(angle) * dy + (w - 1) / 2
                from_y = math.sin(angle) * dx + math.cos(angle) * dy + (h - 1) / 2
                for i in (math.floor(from_y), math.floor(from_y) + 1):
                    for j in (math.floor(from_x), math.floor(from_x) + 1):
                        if 0 <= i < h and 0 <= j < w:
                            expected[b, y, x] += (1 - abs(from_y - i)) * (1 - abs(from_x - j)) * SOME[b, i, j]
    assert (apply("rotate", degrees=degrees, seed=3).float() - expected).abs().max() <= 0.501


def test_colours_follow_a_slow_reference() -> None:
    strengths = {"brightness": 0.5, "contrast": 0.7, "saturation": 0.9}
    u = 2 * torch.rand(len(SOME), 3, generator=torch.Generator().manual_seed(5)) - 1
    for image, draw, got in zip(SOME.double(), u.tolist(), apply("color", seed=5, **strengths), strict=True):
        b, c, s = (1 + d * k for d, k in zip(draw, strengths.values(), strict=True))
        x = (image * b).clamp(0, 255)
        grey = (0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]).mean()
        x = (grey + c * (x - grey)).clamp(0, 255)
        grey = (0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2])[..., None]
        assert (got.double() - (grey + s * (x - grey)).clamp(0, 255)).abs().max() <= 0.51


def test_noise_has_its_deviation_and_saturates() -> None:
    grey = torch.full((50, 20, 20, 1), 128, dtype=torch.uint8)
    noise = apply("noise", grey, std=0.1).double() - 128
    assert abs(float(noise.std()) - 25.5) < 0.5 and abs(float(noise.mean())) < 0.5
    white = apply("noise", torch.full((50, 20, 20, 1), 255, dtype=torch.uint8), std=0.1)
    assert 0.45 < float((white == 255).double().mean()) < 0.55 and int(white.min()) > 100


def test_cutout_is_a_square_about_a_pixel_chosen_at_random() -> None:
    white = torch.full((3500, 5, 7, 1), 255, dtype=torch.uint8)
    holes = (apply("cutout", white, size=3) == 0)[..., 0]
    square = torch.zeros(5, 7, dtype=torch.bool)
    kinds = []
    for y in range(5):
        for x in range(7):
            hole = square.clone()
            hole[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = True
            kinds.append((holes == hole).flatten(1).all(1))
    hits = torch.stack(kinds)
    assert (hits.sum(0) == 1).all()
    assert chisquare(hits.sum(1).numpy()).pvalue > 1e-3


def test_augmentations_follow_one_another_and_leave_targets_alone() -> None:
    steps = [{"name": "flip", "p": 1.0}, {"name": "crop", "padding": 2}]
    task = Images(1, augment=steps).task
    example = task.draw(torch.arange(9))
    rng: Callable[[], torch.Generator] = lambda: torch.Generator().manual_seed(2)  # noqa: E731
    changed = task.augment(Example(example.obs, example.target), rng())
    assert torch.equal(changed.target, example.target) and not torch.equal(changed.obs, example.obs)
    g = rng()
    torch.rand(9, 1, generator=g)  # what flip draws
    by_hand = augmentation(steps[1:], "augment")(example.obs.flip(2), g)
    assert torch.equal(changed.obs, by_hand)
    plain = Images(1).task
    assert plain.augment(example, rng()) is example
