"""Where batches come from: Replay (act, store, sample), Rollout (act for a horizon), Dataset (draw examples)."""

from rlcore.sources.base import Acting, Source
from rlcore.sources.dataset import Dataset
from rlcore.sources.overlap import OverlappedReplay, OverlappedRollout
from rlcore.sources.replay import Replay
from rlcore.sources.rollout import Rollout

__all__ = ["Acting", "Dataset", "OverlappedReplay", "OverlappedRollout", "Replay", "Rollout", "Source"]
