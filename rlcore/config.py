"""The settings of a run: validated models <- YAML recipe <- dotted overrides. An unknown key is an error.

Imports no torch.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import (
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from rlcore import plain_yaml, registry
from rlcore.errors import UserError, nearest
from rlcore.fields import Model, explain, flatten
from rlcore.schedules import Schedule
from rlcore.training_config import EvalConfig, OptimConfig, StopConfig

Order = Literal["fixed", "arrival"]


class EnvConfig(Model):
    """The environment."""

    id: str = Field(default="CartPole-v1", description="any gymnasium id, or a registered environment or task")
    num_envs: int = Field(default=8, ge=1, description="environments stepped together")
    backend: Literal["auto", "native", "sync", "async", "vector"] = Field(
        default="auto", description="auto: native where registered and no wrappers are asked, else sync"
    )
    workers: int = Field(default=0, ge=0, description="processes that step the environments, each its share; 0: none")
    order: Order = Field(
        default="fixed", description="of workers' results; arrival: whoever is ready first, faster, never repeatable"
    )
    kwargs: dict[str, Any] = Field(default={}, description="keywords of the environment, as env.kwargs.NAME")
    wrappers: list[dict[str, Any]] = Field(
        default=[], description="gymnasium wrappers, innermost first, as [{name: X, ...}]"
    )

    @field_validator("wrappers")
    @classmethod
    def _named(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not all(isinstance(wrapper.get("name"), str) for wrapper in value):
            raise ValueError("mappings with a name, such as {name: TimeLimit, max_episode_steps: 100}")
        return value


class NetworkConfig(Model):
    """The network that turns an observation into features."""

    name: str = Field(default="mlp", description="a registered network")
    kwargs: dict[str, Any] = Field(default={}, description="keywords of the network, as agent.network.kwargs.NAME")


class AgentConfig(Model):
    """Options common to all agents. Each agent's own are validated by its Config."""

    learns_from: ClassVar[tuple[str, ...]] = ("replay",)  # kinds of source, the default first
    recorded: ClassVar[bool] = False  # True: what a dataset source draws for it are the transitions of source.data

    name: Any = Field(default="dqn", description="a registered agent")  # each agent's own Literal


Reward = Literal["raw", "sign", "normalize"]
REWARD: Any = Field(
    default="raw", description="what is learnt from; normalize: divided by the deviation of the discounted return"
)


class Beta(Schedule):
    """A power that rises to 1, or a number: one that never changes."""

    kind: Literal["constant", "linear", "cosine", "exponential"] = Field(
        default="linear", description="shape of the change; exponential needs start and end above 0"
    )
    start: float = Field(default=0.4, ge=0, le=1, description="value at the beginning (after the warm-up)")
    end: float = Field(default=1.0, ge=0, le=1, description="value at the end; unused by constant")

    @model_validator(mode="before")
    @classmethod
    def _number(cls, raw: Any) -> Any:
        """Let a number, on the command line a text, stand for itself at all times."""
        return {"kind": "constant", "start": raw} if isinstance(raw, int | float | str) else raw


class ReplayConfig(Model):
    """Act, store, sample."""

    name: Literal["replay"] = Field(default="replay", description="kind of source")
    capacity: int = Field(default=50_000, ge=1, description="size of the replay buffer (transitions)")
    batch_size: int = Field(default=128, ge=1, description="transitions per update")
    learning_starts: int = Field(default=1_000, ge=0, description="frames of random actions before learning")
    updates_per_frame: float = Field(default=0.25, gt=0, description="updates per environment frame, for any num_envs")
    frames_per_iteration: int = Field(default=1, ge=1, description="frames between updates (at least env.num_envs)")
    prioritized: bool = Field(default=False, description="sample in proportion to (|TD error| + 1e-6) ** alpha")
    alpha: float = Field(default=0.6, ge=0, le=1, description="how much priorities matter; 0: uniform")
    beta: Beta = Field(default=Beta(), description="how fully importance weights correct it")
    hindsight: float = Field(
        default=0.0, ge=0, le=1, description="fraction of samples whose goal is one reached later in the episode"
    )
    frame_stack: int = Field(
        default=0, ge=0, description="observations are stacks of so many frames, each kept once; 0: kept as they are"
    )
    reward: Reward = REWARD
    overlap: bool = Field(default=False, description="learn while env.workers step: updates see one step less")


class RolloutConfig(Model):
    """Act for a horizon, attach targets, learn for a few epochs, forget."""

    name: Literal["rollout"] = Field(default="rollout", description="kind of source")
    horizon: int = Field(default=16, ge=1, description="steps of every environment per iteration")
    epochs: int = Field(default=1, ge=1, description="passes over each rollout")
    minibatches: int = Field(default=1, ge=1, description="updates per pass")
    reward: Reward = REWARD
    overlap: bool = Field(
        default=False, description="learn while env.workers step: the policy that acts is one iteration older"
    )


class DatasetConfig(Model):
    """Draw labelled examples."""

    name: Literal["dataset"] = Field(default="dataset", description="kind of source")
    batch_size: int = Field(default=32, ge=0, description="examples per update; 0: the whole training split")
    shuffle: bool = Field(default=True, description="a new order every epoch")
    workers: int = Field(default=2, ge=0, description="processes that read a streamed task's batches ahead; 0: none")
    data: str = Field(
        default="", description="recorded transitions, FILE.npz or minari:ID; empty: the task's labelled examples"
    )


class BudgetConfig(Model):
    """When the run ends."""

    frames: int = Field(default=50_000, ge=1, description="environment frames (examples drawn, for supervised tasks)")
    horizon: int | None = Field(default=None, ge=1, description="frames that schedules run over [budget.frames]")


class LogConfig(Model):
    """Logging."""

    every: int = Field(default=1_000, ge=1, description="frames between rows of progress.csv and TensorBoard")
    trackers: list[Literal["wandb", "mlflow"]] = Field(
        default=[], description="who else is told of rows, settings, final metrics and figures, as [wandb, mlflow]"
    )

    @field_validator("trackers", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class CheckpointConfig(Model):
    """Checkpoints."""

    every: int = Field(default=10_000, ge=0, description="frames between checkpoints; 0: only at the end")
    keep: int = Field(default=2, ge=1, description="newest checkpoints kept, beside the best one")
    buffer: bool = Field(default=True, description="include the replay buffer; without it a resume is not exact")


SourceConfig = Annotated[ReplayConfig | RolloutConfig | DatasetConfig, Field(discriminator="name")]
A = TypeVar("A", bound=AgentConfig)


class Config(Model, Generic[A]):
    """Everything that defines a run."""

    recipe: str = Field(default="", description="name of the recipe, for lists of runs")
    init: str = Field(default="", description="a run whose weights and preprocessing this one starts from")
    seed: int = Field(default=0, ge=0, lt=2**32, description="root of every random stream of the run")
    device: str = Field(default="cpu", description="cpu, cuda, cuda:N or mps")
    threads: int = Field(default=1, ge=1, description="CPU threads of torch; small networks are fastest with one")
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="updates as one compiled graph; auto: on where the planned updates repay it"
    )
    env: EnvConfig = EnvConfig()
    agent: SerializeAsAny[A]
    source: SourceConfig = ReplayConfig()
    optim: OptimConfig = OptimConfig()
    budget: BudgetConfig = BudgetConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    stop: StopConfig = StopConfig()

    @field_validator("compile", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value  # as YAML reads them

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", value):
            raise ValueError("cpu, cuda, cuda:N or mps")
        return value


def recipes() -> Path:
    """Return the folder of the shipped recipes: in a checkout beside the packages, in an installation inside."""
    here = Path(__file__).resolve().parent
    beside = here.parent / "scripts" / "configs"
    return beside if beside.is_dir() else here / "recipes"


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
    raw = plain_yaml.read(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a mapping of settings, got {type(raw).__name__}")
    return {"recipe": path.stem, **raw} if path.name != "config.yaml" else raw


# Choosing another of these by name drops the options of the old one: (what holds them, the default name).
_OPTIONS_OF = {
    "agent.name": ("agent", "dqn"),
    "agent.network.name": ("agent.network", "mlp"),
    "source.name": ("source", None),
    "env.id": ("env.kwargs", "CartPole-v1"),
}


def override(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``raw`` with settings changed by dotted name, {"optim.lr": 1e-3}, or nested, {"optim": {"lr": 1e-3}}.

    A mapping changes what it names and leaves the rest; an empty one clears. Choosing another agent, network,
    source or environment drops the old one's options, which the new one need not know.
    """
    result, changes = read(raw), flatten(overrides)
    for dotted, (holder, default) in _OPTIONS_OF.items():
        old = flatten(result).get(dotted, default)
        if old is not None and changes.get(dotted, old) != old:
            _put(result, holder, {})
    for dotted, value in changes.items():
        _put(result, dotted, copy.deepcopy(value))  # what later changes put into it is not the caller's
    return result


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for key in path:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[last] = value


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
    raw, where = read(raw), f"{where}: " if where else ""
    agent = raw.get("agent", {})
    if not isinstance(agent, dict):
        raise UserError(f"{where}agent: {agent!r} is not a mapping; expected agent.name and the agent's options")
    raw["agent"] = agent = {"name": "dqn", **agent}
    cls = agent_config(str(agent["name"]))
    source = raw.get("source")
    if source is None or isinstance(source, dict):
        raw["source"] = {"name": cls.learns_from[0], **(source or {})}
    try:
        config = Config[cls].model_validate(raw)
    except ValidationError as error:
        raise UserError(where + explain(error, Config[cls])) from None
    if config.source.name not in cls.learns_from:
        got, kinds = config.source.name, " or ".join(cls.learns_from)
        raise UserError(f"{where}source.name: got '{got}', expected {kinds} for agent '{agent['name']}'")
    if config.stop.metric.startswith("eval/") and not config.eval.every:
        raise UserError(f"{where}stop.metric: '{config.stop.metric}' needs evaluations; expected eval.every above 0")
    if config.eval.use == "best" and not 0 < config.eval.every <= config.budget.frames:
        raise UserError(f"{where}eval.use: 'best' needs evaluations; expected eval.every from 1 to budget.frames")
    return config


def dump(config: Config[Any]) -> str:
    """Return the complete settings as YAML, re-runnable as they are."""
    return plain_yaml.dump(config.model_dump(mode="json"))
