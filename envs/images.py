"""Classification of images, as a one-step task and as an environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from envs import picture_files
from envs.augment_images import augmentation
from envs.classification import Classification
from envs.criterion import Criterion
from envs.one_step import OneStep
from envs.options import TaskConfig, validated
from envs.picture_files import Mode, Pictures, Shape
from envs.splits import folded, stratified
from envs.tabular import Reward, right
from rlcore.errors import UserError
from rlcore.types import Example, Spec
from rlcore.vector import Autoreset, Split

_FITS = 2**30  # bytes of all pictures that are kept in memory by default


class ImagesConfig(TaskConfig):
    """Keywords of `Images`."""

    path: str = Field(default="digits", description="'digits', or a folder with one folder of images for each class")
    size: tuple[int, int] | None = Field(
        default=None, description="[height, width] to stretch pictures to; default: they are alike already"
    )
    mode: Mode = Field(default="auto", description="channels; auto: those of the first picture")
    bandit: bool = Field(default=False, description="choose a class: Discrete actions, reward 1 if right")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the target's probability spread over all classes"
    )
    augment: list[dict[str, Any]] = Field(
        default=[], description="random changes of what is learnt from, such as [{name: crop, padding: 4}]"
    )
    memory: Literal["auto", "always", "never"] = Field(
        default="auto", description="keep the pictures in memory, else read them as they are drawn; auto: up to 1 GiB"
    )

    @field_validator("size")
    @classmethod
    def _positive(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and min(value) < 1:
            raise ValueError("positive numbers of pixels")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ImagesConfig:
        if self.bandit and (self.loss is not None or self.label_smoothing or self.augment):
            raise ValueError("no loss, label_smoothing or augment beside bandit, whose reward is 1 or 0")
        if self.label_smoothing and (self.loss or "CrossEntropyLoss").rpartition("nn.")[2] != "CrossEntropyLoss":
            raise ValueError("loss=CrossEntropyLoss beside label_smoothing")
        return self


def pictures(config: ImagesConfig) -> Pictures:
    """Return the pictures that keywords name.

    Raises:
        UserError: they cannot be had as asked for.
    """
    encoding = config.encoding or {}
    shape: Shape | None = tuple(encoding["shape"]) if encoding else None  # type: ignore[assignment]
    if config.path == "digits":
        return _digits(config.size, config.mode, shape)

    def keep(size: int) -> bool:
        return config.memory == "always" or (config.memory == "auto" and size <= _FITS)

    return picture_files.folder(
        Path(config.path).expanduser(), config.size, config.mode, keep, encoding.get("classes"), shape
    )


_digits = lru_cache(maxsize=1)(picture_files.digits)


class ImagesTask(Classification):
    """Examples of one split: from memory, or streamed from their files, then on the device of the index."""

    def __init__(
        self,
        data: Pictures,
        rows: np.ndarray,
        config: ImagesConfig,
        spec: Spec,
        reward: Reward,
        device: str | torch.device,
    ) -> None:
        self.data, self.rows, self.size, self.classes = data, rows, len(rows), data.classes
        self.spec, self._reward = spec, reward
        self.streamed = data.images is None or config.memory == "never"
        self._target = data.labels[torch.from_numpy(rows)]  # (size,)
        self._images = data.images
        if data.images is not None and not self.streamed:
            self._target = self._target.to(device)
            self._images = data.images[torch.from_numpy(rows)].to(device)  # (size, H, W, C)
        self._augment = augmentation(config.augment, "env.kwargs.augment")

    def draw(self, index: Tensor) -> Example:
        """Return the examples (B, ...) at ``index`` (B,) int64, images (B, H, W, C) uint8 and classes (B,)."""
        if not self.streamed and self._images is not None:
            return Example(self._images.index_select(0, index), self._target.index_select(0, index))
        at = index.cpu()
        rows = self.rows[at.numpy()]
        if self._images is None:
            images = torch.stack([picture_files.read(self.data.names[row], self.data.shape) for row in rows])
        else:
            images = self._images[torch.from_numpy(rows)]
        return Example(images.to(index.device), self._target[at].to(index.device))

    @property
    def augments(self) -> bool:
        """Whether the keyword ``augment`` says anything."""
        return bool(self._augment)

    def augment(self, data: Example, generator: torch.Generator) -> Example:
        """Return the examples with their images changed at random."""
        return data._replace(obs=self._augment(data.obs, generator)) if self._augment else data

    def reward(self, action: Tensor, target: Tensor, /) -> Tensor:
        """Return minus the loss of logits (B, C), or 1 for a right class (B,) and 0 for a wrong one."""
        return self._reward(action, target)

    def item(self, row: int) -> str:
        """Return the picture's file."""
        return self.data.names[self.rows[row]]


def specify(classes: Sequence[str], shape: Shape, config: ImagesConfig) -> tuple[Spec, Reward]:
    """Return the spaces, with the loss where actions are logits, and the reward."""
    obs_space = spaces.Box(0, 255, shape, np.uint8)
    if config.bandit:
        return Spec(obs_space, spaces.Discrete(len(classes))), right
    criterion = Criterion(config.loss or "CrossEntropyLoss", "classification")
    if config.label_smoothing:
        for module in (criterion.each, criterion.summed):
            assert isinstance(module, nn.CrossEntropyLoss)
            module.label_smoothing = config.label_smoothing
    action_space = spaces.Box(-np.inf, np.inf, (len(classes),), np.float32)
    return Spec(obs_space, action_space, loss=criterion.loss), criterion.reward


class ImagePredictor:
    """Names the classes of image files."""

    def __init__(self, classes: list[str], shape: Shape, spec: Spec) -> None:
        self.classes, self.shape, self.spec = classes, shape, spec

    def read(self, words: Sequence[str]) -> Path | list[str]:
        """Return the path of an image or of a folder of images, or the paths of several images."""
        return Path(words[0]) if len(words) == 1 else list(words)

    def encode(self, inputs: str | Path | Sequence[str | Path]) -> tuple[Tensor, list[str]]:
        """Return pictures (B, H, W, C) of image files, or of all those below a folder, and a remark on their order.

        Raises:
            UserError: a file cannot be read, or a folder holds none.
        """
        if not isinstance(inputs, (str, Path)):
            return torch.stack([picture_files.read(path, self.shape) for path in inputs]), []
        path = Path(inputs)
        if not path.is_dir():
            return picture_files.read(path, self.shape)[None], []
        files = picture_files.files_in(path)
        if not files:
            raise UserError(f"{path}: expected image files ({', '.join(picture_files.SUFFIXES)}), got none")
        images = torch.stack([picture_files.read(file, self.shape) for file in files])
        return images, [f"{len(files)} images, in order: {', '.join(str(f.relative_to(path)) for f in files)}"]

    def names(self, inputs: Any, obs: Tensor) -> list[list[str]]:
        """Return [] for each of the pictures (B, H, W, C)."""
        return [[] for _ in obs]

    def decode(self, action: Tensor) -> list[str]:
        """Return the names of B classes, for logits (B, C) or chosen classes (B,)."""
        chosen = action.argmax(-1) if action.is_floating_point() else action
        return [self.classes[i] for i in chosen.tolist()]


class Images(OneStep):
    """Say what an image shows. Keywords: `ImagesConfig`.

    Raises:
        UserError: a keyword is unknown or of the wrong kind, or the pictures cannot be used as asked.
    """

    has_folds = True
    names_rows = True

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device = "cpu",
        split: Split = "train",
        autoreset: Autoreset = "same_step",
        **kwargs: Any,
    ) -> None:
        config = validated(ImagesConfig, kwargs)
        self.data = pictures(config)
        labels, validation, seed = self.data.labels.numpy(), config.val_fraction, config.split_seed
        if config.folds:
            self.parts = folded(labels, config.folds, config.fold, validation, seed)
        else:
            self.parts = stratified(labels, validation, config.test_fraction, seed)
        if not len(self.parts[split]):
            raise UserError(f"{self.data.name}: the {split} split is empty, expected at least one image")
        spec, reward = specify(self.data.classes, self.data.shape, config)
        task = ImagesTask(self.data, self.parts[split], config, spec, reward, device)
        super().__init__(task, num_envs, device, split, autoreset)

    def fitted(self) -> dict[str, Any]:
        """Return the keyword ``encoding``: the classes, in order, and the pictures' shape."""
        return {"encoding": {"classes": self.data.classes, "shape": list(self.data.shape)}}

    def report(self) -> tuple[dict[str, Any], str]:
        """Return how many images of which class each split has, and what could not be read, as a dict and as text."""
        labels, classes = self.data.labels.numpy(), self.data.classes
        counts = {name: np.bincount(labels[rows], minlength=len(classes)) for name, rows in self.parts.items()}
        by_class = {c: {part: int(n[i]) for part, n in counts.items()} for i, c in enumerate(classes)}
        values = {
            "source": self.data.name,
            "images": len(labels),
            "shape": list(self.data.shape),
            "streamed": self.task.streamed,
            "unreadable": self.data.unreadable,
            "classes": by_class,
        }
        (height, width, channels), bad = self.data.shape, self.data.unreadable
        kind = f"{height} x {width} pixels, {'grey' if channels == 1 else 'RGB'}"
        where = "streamed" if self.task.streamed else "in memory"
        lines = [
            f"{self.data.name}: {len(labels)} images of {kind}, {where}; {len(bad)} files left out, unreadable",
            *(f"  cannot be read: {path}" for path in bad[:10]),
            *(f"  class {c}: " + ", ".join(f"{n} {part}" for part, n in of.items()) for c, of in by_class.items()),
        ]
        return values, "\n".join(lines)

    @classmethod
    def predictor(cls, kwargs: Mapping[str, Any]) -> ImagePredictor:
        """Return what names the classes of new images, from the environment's keywords and what ``fitted`` returned."""
        config = validated(ImagesConfig, kwargs)
        encoding = config.encoding or {}
        shape: Any = tuple(encoding["shape"])
        return ImagePredictor(encoding["classes"], shape, specify(encoding["classes"], shape, config)[0])
