"""Nested state to and from strict JSON, its tensors kept aside. Nothing is pickled, imported or evaluated.

Dicts, lists, tuples, None, bool, int, float, str, bytes, tensors, numpy arrays and numpy scalars come
back with their types and bits unchanged. What JSON lacks is an object with one key that starts with "$".
"""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

_INT64 = 2**63  # larger integers travel in hexadecimal: readers of JSON disagree about them


def encode(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Return ``value`` as JSON-ready objects; its tensors and arrays are put into ``tensors`` by a new name.

    Raises:
        TypeError: something in ``value`` is of another type; says where.
    """
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:
        return value if abs(value) < _INT64 else {"$int": hex(value)}
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if type(value) is bytes:
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return _encode_array(value, tensors, path)
    if type(value) is list:
        return [encode(item, tensors, f"{path}/{i}") for i, item in enumerate(value)]
    if type(value) is tuple:
        return {"$tuple": encode(list(value), tensors, path)}
    if isinstance(value, dict):
        return _encode_dict(value, tensors, path)
    raise TypeError(f"state{path} is a {type(value).__name__}; expected tensors, arrays, numbers, strings or bytes")


def _encode_array(value: Any, tensors: dict[str, Tensor], path: str) -> dict[str, Any]:
    name = f"{len(tensors)}{path}"  # the number keeps {"a/b": x} and {"a": {"b": x}} apart
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"$tensor": name}
    if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
        raise TypeError(f"state{path} is a numpy array of {value.dtype}; expected booleans, integers or floats")
    native = np.array(value, dtype=value.dtype.newbyteorder("="))
    tensors[name] = torch.from_numpy(native)
    return {"$array" if isinstance(value, np.ndarray) else "$scalar": name}


def _encode_dict(value: dict[Any, Any], tensors: dict[str, Tensor], path: str) -> dict[str, Any]:
    for key in value:
        if type(key) not in (str, int):
            raise TypeError(f"state{path} has the key {key!r}; expected a string or an integer")
    items = {key: encode(item, tensors, f"{path}/{key}") for key, item in value.items()}
    if all(type(key) is str and not key.startswith("$") for key in items):
        return items
    return {"$dict": [[encode(key, tensors), item] for key, item in items.items()]}


def decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return what `encode` was given.

    Raises:
        KeyError, ValueError: ``value`` is not what `encode` returned, or a tensor is missing.
    """
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if not tag.startswith("$"):
        return {key: decode(item, tensors) for key, item in value.items()}
    content = value[tag]
    if tag == "$dict":
        return {decode(key, tensors): decode(item, tensors) for key, item in content}
    if tag == "$tuple":
        return tuple(decode(content, tensors))
    if tag == "$tensor":
        return tensors[content]
    if tag == "$array":
        return tensors[content].numpy()
    if tag == "$scalar":
        return tensors[content].numpy()[()]
    if tag == "$int":
        return int(content, 16)
    if tag == "$float":
        return float(content)
    if tag == "$bytes":
        return base64.b64decode(content, validate=True)
    raise ValueError(f"unknown mark {tag!r}")
