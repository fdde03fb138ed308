"""Weights & Biases and MLflow behind the run's logger: the same rows over frames, settings, final metrics and figures.

``log.trackers`` names them. Where they write is said as always to them, by environment variables: WANDB_MODE,
WANDB_PROJECT, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME (project and experiment: rlcore, if nothing else is said).

A tracker follows training and never stops it: one that fails is left alone from then on, with one note. What it has to
go on with lies in the run's ``trackers.json``. When the run goes on, rows that a tracker holds are not sent again, and
those that it lacks are sent from progress.csv, so that after a kill, or a failure of its own, it is whole again.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from rlcore import config as configs
from rlcore import runs
from rlcore.config import Config
from rlcore.errors import UserError, note

Row = Mapping[str, float]
PROJECT = "rlcore"
_FILE = "trackers.json"


class Tracker(Protocol):
    """One run in one tracker."""

    held: int  # frames of the last row that it had when this session began; -1: none
    address: str  # where it is to be seen; empty: nowhere

    def row(self, frames: int, row: Row) -> None:
        """Add a row."""

    def figure(self, tag: str, png: bytes, frames: int) -> None:
        """Add a picture."""

    def final(self, metrics: Row, frames: int) -> None:
        """Set the final metrics."""

    def end(self, status: str) -> None:
        """End this session: "finished", "failed" or "interrupted"."""


class WandB:
    """A run of Weights & Biases. Its steps are frames.

    Offline it keeps rows in memory for seconds, so what a killed session left is incomplete: it is deleted, and the
    session that goes on sends these rows again. Online the server says what it has.
    """

    def __init__(self, folder: Path, config: Config[Any]) -> None:
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # it takes the package "agents" for another one
        import wandb

        self._wandb, self._folder = wandb, folder
        known = _read(folder, "wandb")
        if re.fullmatch(r"offline-run-[\w-]+", str(known.get("begun"))):
            shutil.rmtree(folder / "wandb" / known["begun"], ignore_errors=True)
        self._run = wandb.init(
            id=known.get("id"),
            resume="allow" if known else None,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            group=config.recipe or None,
            config=config.model_dump(mode="json"),
            allow_val_change=True,
            dir=folder,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.address = "" if self._run.offline else self._run.url or ""
        self._last = self.held = known.get("frames", -1) if self._run.offline else self._run.starting_step - 1
        session = Path(self._run.dir).parent.name if self._run.offline else None
        self._keep(begun=session)

    def _keep(self, begun: str | None) -> None:
        _write(self._folder, "wandb", {"id": self._run.id, "frames": self._last, "begun": begun})

    def row(self, frames: int, row: Row) -> None:
        """Add a row."""
        self._run.log({"frames": frames, **row}, step=frames)
        self._last = frames

    def figure(self, tag: str, png: bytes, frames: int) -> None:
        """Add a picture."""
        from PIL import Image

        self._run.log({tag: self._wandb.Image(Image.open(io.BytesIO(png)))}, step=frames)

    def final(self, metrics: Row, frames: int) -> None:
        """Set the final metrics."""
        self._run.summary.update(dict(metrics))

    def end(self, status: str) -> None:
        """End this session."""
        self._run.finish(exit_code=int(status != "finished"))
        self._keep(begun=None)


class MLflow:
    """A run of MLflow. Its steps are frames; ``frames`` is a metric, too, of which it is asked what it holds."""

    _PARAMS, _LENGTH = 100, 6000  # in a call; characters of a value
    _STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}

    def __init__(self, folder: Path, config: Config[Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # seven take minutes, and training waits
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client, self._metric = MlflowClient(), Metric
        self._id = _read(folder, "mlflow").get("id") or self._begun(folder, config)
        _write(folder, "mlflow", {"id": self._id})
        self._client.update_run(self._id, status="RUNNING")
        self.address = ""
        self.held = max((point.step for point in self._client.get_metric_history(self._id, "frames")), default=-1)
        known = self._client.get_run(self._id).data.params  # they cannot change
        settings = {_named(name): str(value) for name, value in configs.flatten(config.model_dump(mode="json")).items()}
        params = [Param(name, value[: self._LENGTH]) for name, value in settings.items() if name not in known]
        for at in range(0, len(params), self._PARAMS):
            self._client.log_batch(self._id, params=params[at : at + self._PARAMS])
        self._client.log_text(self._id, configs.dump(config), "config.yaml")  # and this is what holds now

    def _begun(self, folder: Path, config: Config[Any]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        tags = {"recipe": config.recipe}
        return self._client.create_run(experiment, tags=tags, run_name=folder.name).info.run_id

    def row(self, frames: int, row: Row) -> None:
        """Add a row."""
        self.final({"frames": frames, **row}, frames)

    def figure(self, tag: str, png: bytes, frames: int) -> None:
        """Add a picture."""
        from PIL import Image

        self._client.log_image(self._id, Image.open(io.BytesIO(png)), key=_named(tag), step=frames)

    def final(self, metrics: Row, frames: int) -> None:
        """Set the final metrics."""
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [self._metric(_named(k), float(v), now, frames) for k, v in metrics.items()])

    def end(self, status: str) -> None:
        """End this session."""
        self._client.set_terminated(self._id, self._STATUS[status])


def _named(name: str) -> str:
    """Return a name as MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", name)


KINDS: dict[str, Callable[[Path, Config[Any]], Tracker]] = {"wandb": WandB, "mlflow": MLflow}


def require(config: Config[Any]) -> None:
    """Check that the trackers of a run are installed.

    Raises:
        UserError: one is not.
    """
    for name in config.log.trackers:
        if find_spec(name) is None:
            raise UserError(f"log.trackers: {name} is not installed: pip install 'rlcore[track]'")


class Trackers:
    """The trackers of a run, none of which can disturb it."""

    def __init__(self, folder: Path, config: Config[Any]) -> None:
        self._following: dict[str, Tracker] = {}
        for name in dict.fromkeys(config.log.trackers):
            self._guarded(name, functools.partial(self._begin, name, folder, config))

    def _begin(self, name: str, folder: Path, config: Config[Any]) -> None:
        self._following[name] = KINDS[name](folder, config)

    @property
    def addresses(self) -> list[str]:
        """Where the run is to be seen."""
        return [tracker.address for tracker in self._following.values() if tracker.address]

    def row(self, frames: int, row: Row) -> None:
        """Send a row to the trackers that do not hold it."""
        self._each(lambda tracker: tracker.row(frames, row), frames)

    def figure(self, tag: str, png: bytes, frames: int) -> None:
        """Send a picture to the trackers that do not hold the row of its frames, before which it comes."""
        after = tag.startswith("final/")  # the last row, whose frames it has: a kill may have come between
        self._each(lambda tracker: tracker.figure(tag, png, frames), float("inf") if after else frames)

    def final(self, metrics: Row, frames: int) -> None:
        """Send the final metrics."""
        self._each(lambda tracker: tracker.final(metrics, frames))

    def end(self, status: str) -> None:
        """End the session; nothing is sent any more."""
        self._each(lambda tracker: tracker.end(status))
        self._following.clear()

    def _each(self, send: Callable[[Tracker], None], frames: float = float("inf")) -> None:
        for name, tracker in list(self._following.items()):
            if frames > tracker.held:
                self._guarded(name, functools.partial(send, tracker))

    def _guarded(self, name: str, send: Callable[[], None]) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about its own insides
                send()
        except Exception as error:  # whatever another's code raises
            self._following.pop(name, None)
            note(f"{name} no longer follows this run: {' '.join(f'{type(error).__name__}: {error}'.split())}")


def _read(folder: Path, name: str) -> dict[str, Any]:
    """Return what a tracker has to go on with."""
    known = runs.read_json(folder / _FILE).get(name)
    return known if isinstance(known, dict) else {}


def _write(folder: Path, name: str, known: dict[str, Any]) -> None:
    runs.write_json(folder / _FILE, {**runs.read_json(folder / _FILE), name: known})
