"""What training seeds together saves, uncompiled and compiled: `rlcore.benchmark_together` as rows of the page."""

from __future__ import annotations

from typing import Any

from rlcore import benchmark_together


def measure(
    *, name: str, recipe: str, settings: dict[str, Any], seeds: int, frames: int, updates: int, pairs: int
) -> list[dict[str, Any]]:
    """Return a row for updates that are not compiled, and one for those that are.

    Args:
        name: in the rows.
        recipe: whose updates and whose study of so many ``seeds`` are measured.
        settings: of the recipe's that differ.
        frames: of each run of the study.
        updates: of a repetition.
        pairs: repetitions.
    """
    rows = []
    for compile, said in (("off", "no"), ("on", "yes")):
        chosen = {**settings, "compile": compile}
        one = benchmark_together.updates(recipe, chosen, seeds, updates, pairs)
        study = benchmark_together.study(recipe, chosen, seeds, frames)
        rows.append(
            {
                "training": name,
                "compiled": said,
                "one seed's update, us": one["one_us"],
                f"{seeds} seeds' update, us": one["together_us"],
                "ratio": one["ratio"],
                f"{seeds} runs in turn, s": study["in_turn_s"],
                f"a study of {seeds} seeds, s": study["study_s"],
                "study / in turn": study["study_ratio"],
            }
        )
    return rows
