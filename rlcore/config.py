"""The settings of a run: validated models <- YAML recipe <- dotted overrides. An unknown key is an error.

Imports no torch: ``--help`` lists every field from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator

from rlcore import registry
from rlcore.errors import UserError, nearest
from rlcore.schedules import Schedule


class Model(BaseModel):
    """Base of all settings: unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class EnvConfig(Model):
    """The environment."""

    id: str = Field(default="CartPole-v1", description="any gymnasium id, or a registered environment or task")
    num_envs: int = Field(default=8, ge=1, description="environments stepped together")
    backend: Literal["auto", "native", "sync", "async", "vector"] = Field(
        default="auto", description="auto: native where registered and no wrappers are asked, else sync"
    )
    kwargs: dict[str, Any] = Field(default={}, description="keywords of the environment, as env.kwargs.NAME")
    wrappers: list[dict[str, Any]] = Field(default=[], description="gymnasium wrappers, innermost first: [{name: ..., ...}]")


class NetworkConfig(Model):
    """The network that turns an observation into features."""

    name: str = Field(default="mlp", description="a registered network")
    kwargs: dict[str, Any] = Field(default={}, description="keywords of the network, as agent.network.kwargs.NAME")


class AgentConfig(Model):
    """Options common to all agents. Each agent's own are validated by its Config."""

    learns_from: ClassVar[str] = "replay"

    name: Any = Field(default="dqn", description="a registered agent")  # each agent's own Literal


class ReplayConfig(Model):
    """Act, store, sample."""

    name: Literal["replay"] = Field(default="replay", description="kind of source")
    capacity: int = Field(default=50_000, ge=1, description="size of the replay buffer (transitions)")
    batch_size: int = Field(default=128, ge=1, description="transitions per update")
    learning_starts: int = Field(default=1_000, ge=0, description="frames of random actions before learning")
    updates_per_frame: float = Field(default=0.25, gt=0, description="updates per environment frame, for any num_envs")
    frames_per_iteration: int = Field(default=1, ge=1, description="frames between rounds of updates (at least num_envs)")


class RolloutConfig(Model):
    """Act for a horizon, attach targets, learn for a few epochs, forget."""

    name: Literal["rollout"] = Field(default="rollout", description="kind of source")
    horizon: int = Field(default=16, ge=1, description="steps of every environment per iteration")
    epochs: int = Field(default=1, ge=1, description="passes over each rollout")
    minibatches: int = Field(default=1, ge=1, description="updates per pass")


class DatasetConfig(Model):
    """Draw labelled examples."""

    name: Literal["dataset"] = Field(default="dataset", description="kind of source")
    batch_size: int = Field(default=32, ge=0, description="examples per update; 0: the whole training split")
    shuffle: bool = Field(default=True, description="a new order every epoch")


class OptimConfig(Model):
    """The optimiser; one instance per parameter group of the agent."""

    name: Literal["sgd", "adam", "adamw", "rmsprop", "radam", "adagrad"] = Field(default="adam", description="optimiser")
    lr: float = Field(default=1e-3, gt=0, description="learning rate")
    schedule: Schedule = Field(default=Schedule(), description="factor on the learning rate over the run")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay (decoupled for adamw)")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="momentum of sgd and rmsprop")
    eps: float = Field(default=1e-8, gt=0, description="added to denominators (not used by sgd)")
    clip: float = Field(default=0.0, ge=0, description="largest gradient norm of a group; 0: no clipping")
    accumulate: int = Field(default=1, ge=1, description="batches summed into one step")
    groups: dict[str, dict[str, Any]] = Field(default={}, description="other values for one group, as optim.groups.NAME.lr")


class BudgetConfig(Model):
    """When the run ends."""

    frames: int = Field(default=50_000, ge=1, description="environment frames (examples drawn, for supervised tasks)")
    horizon: int | None = Field(default=None, ge=1, description="frames that schedules run over; default: budget.frames")


class EvalConfig(Model):
    """Evaluation during training (its best checkpoint is kept) and at the end."""

    every: int = Field(default=10_000, ge=0, description="frames between evaluations; 0: never")
    episodes: int = Field(default=20, ge=1, description="episodes per evaluation during training")
    seed: int = Field(default=1_000_000, ge=0, description="base seed of evaluations that choose the best checkpoint")
    max_steps: int = Field(default=30_000, ge=1, description="steps after which an evaluation episode counts as it stands")
    final_episodes: int = Field(default=100, ge=1, description="episodes of the evaluation at the end")
    final_seed: int = Field(default=10_000, ge=0, description="base seed of the evaluation at the end")


class LogConfig(Model):
    """Logging."""

    every: int = Field(default=1_000, ge=1, description="frames between rows of progress.csv and TensorBoard")


class CheckpointConfig(Model):
    """Checkpoints."""

    every: int = Field(default=10_000, ge=0, description="frames between checkpoints; 0: only at the end")
    keep: int = Field(default=2, ge=1, description="newest checkpoints kept, beside the best one")
    buffer: bool = Field(default=True, description="include the replay buffer; without it a resume is not exact")


class StopConfig(Model):
    """Stop before the budget is spent."""

    metric: str = Field(default="", description="a logged name, for example eval/return_mean; empty: never")
    threshold: float = Field(default=0.0, description="stop when the metric reaches this value")
    mode: Literal["max", "min"] = Field(default="max", description="max: stop at or above the threshold; min: at or below")


SourceConfig = Annotated[ReplayConfig | RolloutConfig | DatasetConfig, Field(discriminator="name")]
A = TypeVar("A", bound=AgentConfig)


class Config(Model, Generic[A]):
    """Everything that defines a run."""

    recipe: str = Field(default="", description="name of the recipe, for lists of runs")
    seed: int = Field(default=0, ge=0, lt=2**32, description="root of every random stream of the run")
    device: str = Field(default="cpu", description="cpu, cuda, cuda:N or mps")
    threads: int = Field(default=1, ge=1, description="CPU threads of torch; small networks are fastest with one")
    env: EnvConfig = EnvConfig()
    agent: SerializeAsAny[A]
    source: SourceConfig = ReplayConfig()
    optim: OptimConfig = OptimConfig()
    budget: BudgetConfig = BudgetConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    stop: StopConfig = StopConfig()

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", value):
            raise ValueError("cpu, cuda, cuda:N or mps")
        return value


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as a string; everybody means the number."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document.

    Raises:
        UserError: the text is not YAML; says where.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: builds plain values only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: expected YAML, got {getattr(error, 'problem', error)}") from None


def recipes() -> Path:
    """Return the folder of the shipped recipes."""
    return Path(__file__).resolve().parent.parent / "scripts" / "configs"


def read(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return the raw settings of a recipe's bare name, a YAML file, a run folder, or a mapping.

    Raises:
        UserError: there is no such recipe or file, or it does not hold a mapping.
    """
    if isinstance(source, Mapping):
        return {k: read(v) if isinstance(v, Mapping) else v for k, v in source.items()}
    path = Path(source)
    if path.is_dir():
        path = path / "config.yaml"
    elif not path.is_file():
        known = {p.stem for p in recipes().glob("*.yaml")}
        if str(source) not in known:
            raise UserError(f"recipe '{source}' is neither a file nor a shipped recipe{nearest(str(source), known)}")
        path = recipes() / f"{source}.yaml"
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a readable YAML file, got {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a mapping of settings, got {type(raw).__name__}")
    return {"recipe": path.stem, **raw} if path.name != "config.yaml" else raw


def override(raw: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``raw`` with dotted names set: {"optim.lr": 1e-3}. A mapping is merged, anything else replaces.

    Choosing another agent or source by name drops the old one's options, which the new one need not know.
    """
    result = read(raw)
    for section in ("agent", "source"):
        name = overrides.get(f"{section}.name")
        if name is not None and name != (result.get(section) or {}).get("name"):
            result[section] = {}
    for dotted, value in overrides.items():
        *path, last = dotted.split(".")
        at = result
        for key in path:
            child = at.get(key)
            if not isinstance(child, dict):
                child = at[key] = {}
            at = child
        if isinstance(value, Mapping) and isinstance(at.get(last), dict):
            at[last] = {**at[last], **value}
        else:
            at[last] = value
    return result


def agent_config(name: str) -> type[AgentConfig]:
    """Return the Config class of a registered agent, importing torch only for agents of other packages."""
    if name in registry.names("configs"):
        return registry.find("configs", name)
    return registry.find("agents", name).Config


def validate(raw: Mapping[str, Any], where: str = "") -> Config[Any]:
    """Return the validated settings.

    Raises:
        UserError: one sentence naming the field, the value and what was expected.
    """
    raw = read(raw)
    agent = raw.get("agent", {})
    if not isinstance(agent, dict):
        raise UserError(f"agent: {agent!r} is not a mapping; expected agent.name and the agent's options")
    cls = agent_config(str(agent.get("name", "dqn")))
    raw["agent"] = {"name": "dqn", **agent}
    source = raw.get("source")
    if source is None or isinstance(source, dict):
        raw["source"] = {"name": cls.learns_from, **(source or {})}
    try:
        return Config[cls].model_validate(raw)
    except ValidationError as error:
        raise UserError(_sentence(error, Config[cls], where)) from None


def _sentence(error: ValidationError, model: type[BaseModel], where: str) -> str:
    first = error.errors()[0]
    loc = [str(part) for part in first["loc"]]
    if loc[:1] == ["source"] and len(loc) > 1 and loc[1] in ("replay", "rollout", "dataset"):
        del loc[1]  # pydantic names the union's branch; users do not write it
    field, value = ".".join(loc), first.get("input")
    prefix = f"{where}: " if where else ""
    if first["type"] == "extra_forbidden":
        parent = {name.rpartition(".")[2] for name in _names(model, loc[:-1])}
        return f"{prefix}{field} is not a setting{nearest(loc[-1], parent)}"
    if first["type"] == "union_tag_invalid":
        kinds = ("replay", "rollout", "dataset")
        return f"{prefix}source.name: got {value['name']!r}, expected {', '.join(kinds)}{nearest(value['name'], kinds)}"
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{prefix}{field}: got {value!r}, expected {expected}"


def _names(model: type[BaseModel], path: list[str]) -> list[str]:
    prefix = ".".join([*path, ""]) if path else ""
    found = [n for n, _, _ in fields(model) if n.startswith(prefix)]
    return [prefix + n[len(prefix) :].split(".")[0] for n in found]


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield (dotted name, default, description) of every setting, sources' variants included."""
    for name, info in model.model_fields.items():
        default = info.get_default(call_default_factory=True) if not info.is_required() else None
        kinds = [info.annotation, *get_args(info.annotation)]
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if inner:
            for kind in inner:
                yield from fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, default, info.description or ""


def dump(config: Config[Any]) -> str:
    """Return the complete settings as YAML, re-runnable as they are."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
