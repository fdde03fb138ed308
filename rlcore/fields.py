"""The base of the settings' models, and a walk through them: what fields there are, what they mean, what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from rlcore.errors import nearest


class Model(BaseModel):
    """Base of all settings: unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, raw: Any) -> Any:
        """Let a nested mapping change the fields that it names and no others of the field's own default."""
        if not isinstance(raw, Mapping):
            return raw
        merged = dict(raw)
        for name, info in cls.model_fields.items():
            value, default = raw.get(name), info.default
            if isinstance(value, Mapping) and isinstance(default, BaseModel):
                kind = getattr(default, "name", None)
                if value.get("name", kind) == kind:
                    merged[name] = {**default.model_dump(), **value}
        return merged


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping's leaves by dotted name; an empty mapping is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def fields(model: type[BaseModel], prefix: str = "", values: Any = None) -> Iterator[tuple[str, Any, str]]:
    """Yield (dotted name, default, description) of every setting, sources' variants included.

    A setting that is a mapping comes before its fields if it has a description. ``values``: an instance of
    ``model`` that holds the defaults; None: the model's own.
    """
    for name, info in model.model_fields.items():
        default = getattr(values, name, None if info.is_required() else info.get_default(call_default_factory=True))
        inner = models_in(info.annotation)
        if info.description or not inner:
            choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
            one_of = f" (one of {', '.join(map(str, choices))})" if len(choices) > 1 else ""
            yield prefix + name, default, (info.description or "") + one_of
        for kind in inner:
            yield from fields(kind, f"{prefix}{name}.", default if isinstance(default, kind) else None)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a field may hold."""
    return [k for k in (annotation, *get_args(annotation)) if isinstance(k, type) and issubclass(k, BaseModel)]


def names(model: type[BaseModel], path: list[str]) -> set[str]:
    """Return the names of the fields at a path: those of all models that it may lead to."""
    models = [model]
    for key in path:
        models = [k for m in models if key in m.model_fields for k in models_in(m.model_fields[key].annotation)]
    return {name for m in models for name in m.model_fields}


def explain(error: ValidationError, model: type[BaseModel], where: str = "") -> str:
    """Return one sentence about the first thing that is wrong: the field, the value, what was expected.

    Args:
        error: what validating ``model`` raised.
        where: what the fields' names follow, such as "env.kwargs.".
    """
    first = error.errors()[0]
    loc, value, models = [], first.get("input"), [model]
    for part in map(str, first["loc"]):
        if len(models) > 1 and part in (m.model_fields["name"].default for m in models):
            continue  # pydantic names a union's branch; users do not write it
        loc.append(part)
        models = [k for m in models if part in m.model_fields for k in models_in(m.model_fields[part].annotation)]
    field = where + ".".join(loc) if loc else where.rstrip(".")
    if first["type"] in ("extra_forbidden", "invalid_key"):
        return f"{field} is not a setting{nearest(loc[-1], names(model, loc[:-1]))}"
    if first["type"] == "union_tag_invalid":
        known = [name.strip("' ") for name in first.get("ctx", {})["expected_tags"].split(",")]
        name = str(value["name"]) if isinstance(value, dict) else str(value)
        return f"{field}.name: got '{name}', expected {', '.join(known)}{nearest(name, known)}"
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ").split(", unable")[0]
    if isinstance(value, dict) and any(isinstance(x, dict) for x in value.values()):  # too much to say anything
        return f"{field}: expected {expected}"
    return f"{field}: got {value!r}, expected {expected}"
