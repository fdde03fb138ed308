"""Labelled pictures: scikit-learn's digits, or the image files of a folder with one folder for each class."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rlcore.errors import UserError, nearest

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_THREADS = 8  # Pillow decodes outside of Python's lock

Mode = Literal["auto", "grey", "rgb"]
Shape = tuple[int, int, int]  # height, width, channels


@dataclass(frozen=True)
class Pictures:
    """M pictures of one shape, with their classes.

    Attributes:
        name: of the data.
        shape: of one picture.
        classes: names, in order of their numbers.
        labels: (M,) int64.
        names: of the pictures; of files, their paths.
        unreadable: files left out.
        images: (M, H, W, C) uint8; None: they are read from their files each time.
    """

    name: str
    shape: Shape
    classes: list[str]
    labels: Tensor
    names: list[str]
    unreadable: list[str]
    images: Tensor | None


def read(path: str | Path, shape: Shape) -> Tensor:
    """Return the picture in a file, stretched to a shape, (H, W, C) uint8.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return _fitted(_opened(path), shape)
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # what Pillow's decoders raise
        raise UserError(f"{path}: expected an image that can be read, got: {error}") from None


def files_in(folder: Path) -> list[Path]:
    """Return the image files anywhere below a folder, in order of their paths."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def digits(size: tuple[int, int] | None, mode: Mode, shape: Shape | None) -> Pictures:
    """Return scikit-learn's 1,797 handwritten digits; grey and of 8 x 8 pixels unless asked for otherwise.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from PIL import Image
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _missing(error) from None
    data: Any = load_digits()
    height, width = size or (8, 8)
    shape = shape or (height, width, 3 if mode == "rgb" else 1)
    shades = np.rint(data.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), from 0 .. 16
    images = torch.stack([_fitted(Image.fromarray(x), shape) for x in shades])
    names = [f"digits[{i}]" for i in range(len(images))]
    labels = torch.as_tensor(data.target, dtype=torch.int64)
    return Pictures("digits", shape, [str(c) for c in range(10)], labels, names, [], images)


def folder(
    path: Path,
    size: tuple[int, int] | None,
    mode: Mode,
    keep: Callable[[int], bool],
    classes: list[str] | None,
    shape: Shape | None,
) -> Pictures:
    """Return the pictures of FOLDER/CLASS/... Every file is read once, to find those that cannot be.

    Args:
        path: the folder.
        size: height and width that pictures are stretched to; None: they are alike already.
        mode: channels; auto: those of the first picture.
        keep: whether so many bytes are held in memory.
        classes: of a saved run, instead of the folder's.
        shape: of a saved run's pictures, instead of ``size`` and ``mode``.

    Raises:
        UserError: there is no such folder, a class has no picture, or sizes differ and none is given.
    """
    by_class = _files_by_class(path, classes)
    paths = [str(p) for files in by_class.values() for p in files]
    stretch = shape is not None or size is not None
    shape = shape or _shape(path, paths, size, mode)
    stamps = tuple((p, Path(p).stat().st_mtime_ns, Path(p).stat().st_size) for p in paths)
    images, good = _read_all(stamps, shape, stretch, keep(len(paths) * int(np.prod(shape))))
    known = list(by_class) if classes is None else classes
    labels = torch.tensor([known.index(name) for name, files in by_class.items() for _ in files])
    kept = labels[torch.tensor(good, dtype=torch.bool)]
    for name, files in by_class.items():
        if not (kept == known.index(name)).any():
            raise UserError(f"{path / name}: no image of class '{name}' can be read, of {len(files)}")
    names = [p for p, ok in zip(paths, good, strict=True) if ok]
    unreadable = [p for p, ok in zip(paths, good, strict=True) if not ok]
    return Pictures(str(path), shape, known, kept, names, unreadable, images)


def _files_by_class(path: Path, classes: list[str] | None) -> dict[str, list[Path]]:
    if not path.is_dir():
        raise UserError(f"env.kwargs.path: got '{path}', expected 'digits' or a folder with one folder for each class")
    found = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes or found) < 2:
        raise UserError(f"{path}: expected one folder of images for each of two or more classes, got {len(found)}")
    for name in found:
        if classes is not None and name not in classes:
            raise UserError(f"{path / name}: class '{name}' is unknown to the saved run{nearest(name, classes)}")
    by_class = {name: files_in(path / name) for name in found}
    for name, files in by_class.items():
        if not files:
            raise UserError(f"{path / name}: class '{name}' is empty, expected images ({', '.join(SUFFIXES)})")
    return by_class


def _shape(path: Path, paths: list[str], size: tuple[int, int] | None, mode: Mode) -> Shape:
    """Return the shape asked for; what was left open is that of the first picture that can be read."""
    for name in paths:
        try:
            first = _opened(name)
        except (OSError, ValueError, SyntaxError, EOFError):
            continue  # reported, with all others like it, once all are read
        grey = first.mode in ("1", "L", "LA") or first.mode.startswith("I") if mode == "auto" else mode == "grey"
        height, width = size or (first.height, first.width)
        return height, width, 1 if grey else 3
    raise UserError(f"{path}: none of its {len(paths)} images can be read")


@lru_cache(maxsize=1)  # the environments of one run, for training and for evaluations, read the same files
def _read_all(
    stamps: tuple[tuple[str, int, int], ...], shape: Shape, stretch: bool, keep: bool
) -> tuple[Tensor | None, list[bool]]:
    """Return the pictures that can be read, (M, H, W, C) uint8 or None if not kept, and which of the files these are.

    ``stamps`` are the files' names, times and lengths.
    """

    def look(stamp: tuple[str, int, int]) -> Tensor | bool:
        try:
            image = _opened(stamp[0])
        except (OSError, ValueError, SyntaxError, EOFError):
            return False
        if not stretch and (image.height, image.width) != shape[:2]:
            raise UserError(
                f"{stamp[0]}: has {image.height} x {image.width} pixels, others {shape[0]} x {shape[1]}; "
                "expected env.kwargs.size, such as [32, 32], for pictures of different sizes"
            )
        return _fitted(image, shape) if keep else True

    with ThreadPoolExecutor(_THREADS) as pool:
        seen = list(pool.map(look, stamps))
    good = [x is not False for x in seen]
    images = [x for x in seen if isinstance(x, Tensor)]
    return torch.stack(images) if images else None, good


def _opened(path: str | Path) -> Any:
    """Return a file's picture, decoded and the right way up, as Pillow's Image."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise _missing(error) from None
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image)


def _fitted(image: Any, shape: Shape) -> Tensor:
    """Return Pillow's Image stretched to a shape (H, W, C), uint8."""
    from PIL import Image

    height, width, channels = shape
    if image.mode.startswith("I"):  # 16 bits, which converting would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).view(height, width, channels)


def _missing(error: ImportError) -> UserError:
    return UserError(f"images need {error.name}: pip install 'rlcore[images]'")
