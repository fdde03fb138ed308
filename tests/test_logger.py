from __future__ import annotations

import csv
import math
import os
import shutil
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlcore.errors import Diverged, UserError
from rlcore.logger import Logger
from rlcore.meter import Meter, Table


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "progress.csv").open() as file:
        return list(csv.DictReader(file))


def tensorboard(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), {"scalars": 0, "tensors": 0, "images": 0})
    return accumulator.Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: (step, value) by tag."""
    shown = tensorboard(folder)
    return {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def row(frames: int) -> dict[str, float]:
    """A run's row at ``frames``: evaluations come every 300 frames, one metric only once."""
    values = {"updates": frames // 4, "train/loss": frames / 7, "time/frames_per_second": 1e3, "train/epsilon": 0.1}
    if frames % 300 == 0:
        values |= {"eval/return_mean": frames / 3}
    if frames == 500:
        values |= {"aux": math.nan}
    return values


# --- rows ---


def test_file_by_hand(tmp_path):
    logger = Logger(tmp_path)
    logger.write(100, {"time/fps": 2.5, "train/loss": 0.1, "updates": 7})
    logger.write(200, {"time/fps": 1e300, "train/loss": math.nan, "updates": np.int64(8), "eval/a,b": -math.inf})
    logger.write(300, {"train/loss": np.float32(0.1)})
    assert (tmp_path / "progress.csv").read_text() == (
        'frames,updates,"eval/a,b",train/loss,time/fps\n'
        "100,7,,0.1,2.5\n"
        "200,8,-inf,nan,1e+300\n"
        "300,,,0.10000000149011612,\n"
    )
    shown = scalars(tmp_path)
    assert shown["updates"] == [(100, 7.0), (200, 8.0)]
    assert shown["eval/a,b"] == [(200, -math.inf)]
    assert [step for step, _ in shown["train/loss"]] == [100, 200, 300]
    assert math.isnan(shown["train/loss"][1][1])


@given(st.lists(st.floats(), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_floats_read_back_exactly(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("run")
    Logger(folder).write(1, {f"m{i}": v for i, v in enumerate(values)})
    (read,) = rows_of(folder)
    assert [repr(float(read[f"m{i}"])) for i in range(len(values))] == [repr(v) for v in values]


def test_a_growing_header_rewrites_the_file_once_a_column(tmp_path, monkeypatch):
    logger = Logger(tmp_path)
    rewrites = []
    rewrite = logger._rewrite
    monkeypatch.setattr(logger, "_rewrite", lambda rows: (rewrites.append(len(rows)), rewrite(rows)))
    for frames in range(100, 1300, 100):
        logger.write(frames, row(frames))
    assert rewrites == [0, 2, 4]
    read = rows_of(tmp_path)
    assert list(read[0]) == [
        *("frames", "updates", "aux", "eval/return_mean", "train/epsilon", "train/loss"),
        "time/frames_per_second",
    ]
    for line in read:
        wanted = row(int(line.pop("frames")))
        assert {k: v for k, v in line.items() if v} == {k: repr(v) for k, v in wanted.items()}


@pytest.mark.parametrize(
    ("odd", "match"),
    [
        ({"": 1.0}, "metric '' cannot be logged"),
        ({"frames": 1.0}, "metric 'frames' cannot be logged"),
        ({"a\nb": 1.0}, r"metric 'a\\nb' cannot be logged"),
        ({"loss": "high"}, "metric 'loss' is 'high'; expected a number"),
        ({"loss": None}, "metric 'loss' is None; expected a number"),
        ({"loss": [1.0, 2.0]}, "expected a number"),
    ],
)
def test_odd_rows_are_refused_and_leave_no_trace(tmp_path, odd, match):
    logger = Logger(tmp_path)
    logger.write(1, {"loss": 1.0})
    before = (tmp_path / "progress.csv").read_bytes()
    with pytest.raises(UserError, match=match):
        logger.write(2, odd)
    assert (tmp_path / "progress.csv").read_bytes() == before
    assert scalars(tmp_path) == {"loss": [(1, 1.0)]}


def test_text_figure_and_hparams(tmp_path):
    from matplotlib.figure import Figure

    logger = Logger(tmp_path)
    logger.text("config", "seed: 0")
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.add_subplot().plot([1, 2])
    logger.figure("eval/curve", figure, 400)
    logger.hparams(
        {"optim.lr": 1e-3, "agent.name": "dqn", "double": True, "hidden": [64, 64]}, {"final/return": 9.0}, 500
    )
    shown = tensorboard(tmp_path)
    text = shown.Tensors("config/text_summary")[0]
    assert (text.step, text.tensor_proto.string_val[0]) == (0, b"seed: 0")
    image = shown.Images("eval/curve")[0]
    assert (image.step, image.width, image.height) == (400, 100, 50)
    assert image.encoded_image_string[:4] == b"\x89PNG"
    assert scalars(tmp_path) == {"final/return": [(500, 9.0)]}
    assert hparams_of(tmp_path) == [{"optim.lr": 1e-3, "agent.name": "dqn", "double": 1.0, "hidden": "[64, 64]"}]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []  # not a run of its own


def hparams_of(folder: Path) -> list[dict]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.plugins.hparams import metadata

    found = []
    for file in sorted(folder.glob("*tfevents*")):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag == metadata.SESSION_START_INFO_TAG:
                    info = metadata.parse_session_start_info_plugin_data(value.metadata.plugin_data.content)
                    found.append({k: getattr(v, v.WhichOneof("kind")) for k, v in info.hparams.items()})
    return found


# --- going on ---


def run(folder: Path, start: int | None, stop: int) -> None:
    logger = Logger(folder, start)
    for frames in range((start or 0) + 100, stop + 1, 100):
        logger.write(frames, row(frames))


def test_resumed_equals_uninterrupted(tmp_path):
    run(tmp_path / "whole", None, 2000)
    parts = tmp_path / "parts"
    run(parts, None, 700)
    run(parts, 400, 600)
    run(parts, 600, 1900)  # exactly at the last row: nothing to cut
    run(parts, 0, 300)
    run(parts, 250, 900)  # from between two rows
    rows = rows_of(parts)
    assert [int(r["frames"]) for r in rows] == [100, 200, *range(350, 901, 100)]
    run(parts, None, 500)  # killed before its first checkpoint, started again
    run(parts, 200, 2000)
    assert (parts / "progress.csv").read_bytes() == (tmp_path / "whole" / "progress.csv").read_bytes()
    whole, resumed = scalars(tmp_path / "whole"), scalars(parts)
    assert resumed.pop("aux")[0][0] == whole.pop("aux")[0][0] == 500  # NaN
    assert resumed == whole
    assert not list(parts.glob(".*"))


def test_no_event_after_the_checkpoint_survives(tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    run(tmp_path, None, 1000)
    Logger(tmp_path, 300).text("note", "x", 0)
    Logger(tmp_path, 300)
    names = sorted(file.name for file in tmp_path.glob("*tfevents*"))  # a viewer that is open follows new files
    assert [name[-2:] for name in names] == ["01", "02", "03"]
    events = [e for file in sorted(tmp_path.glob("*tfevents*")) for e in LegacyEventFileLoader(str(file)).Load()]
    steps = [event.step for event in events if event.HasField("summary")]
    assert steps == [100, 200, 300, 0]


def test_an_extended_run_replaces_its_hparams(tmp_path):
    run(tmp_path, None, 200)
    Logger(tmp_path, 200).hparams({"lr": 1.0}, {"final/return": 1.0}, 200)
    run(tmp_path, 200, 400)
    Logger(tmp_path, 400).hparams({"lr": 1.0}, {"final/return": 2.0}, 400)
    assert hparams_of(tmp_path) == [{"lr": 1.0}]
    assert scalars(tmp_path)["final/return"] == [(400, 2.0)]
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [100, 200, 300, 400]


def test_half_written_lines_and_records_are_repaired(tmp_path):
    run(tmp_path / "whole", None, 1000)
    run(tmp_path / "killed", None, 800)
    last_line = (tmp_path / "killed" / "progress.csv").read_bytes().splitlines(keepends=True)[-1]
    for cut in range(1, len(last_line) + 1):
        folder = shutil.copytree(tmp_path / "killed", tmp_path / f"cut{cut}")
        (events,) = folder.glob("*tfevents*")
        for file in (folder / "progress.csv", events):
            file.write_bytes(file.read_bytes()[:-cut])
        run(folder, 600, 1000)
        assert (folder / "progress.csv").read_bytes() == (tmp_path / "whole" / "progress.csv").read_bytes()
        assert [step for step, _ in scalars(folder)["train/loss"]] == list(range(100, 1001, 100))


def test_a_row_at_frame_zero(tmp_path):
    for resume in (None, None, 0):  # a checkpoint at 0 was taken after the row at 0; with none, all starts anew
        logger = Logger(tmp_path, resume)
        if resume is None:
            logger.write(0, {"eval/return_mean": 9.0})
        logger.write(100, {"eval/return_mean": 10.0})
    assert scalars(tmp_path) == {"eval/return_mean": [(0, 9.0), (100, 10.0)]}
    assert [int(r["frames"]) for r in rows_of(tmp_path)] == [0, 100]


def test_foreign_event_files_are_left_alone(tmp_path):
    foreign = tmp_path / "events.out.tfevents.1700000000.host.1.0"
    foreign.write_bytes(b"not ours")
    run(tmp_path, None, 200)
    run(tmp_path, 100, 200)
    assert foreign.read_bytes() == b"not ours"


WRITER = """
import sys
from pathlib import Path
from rlcore.logger import Logger
logger = Logger(Path(sys.argv[1]))
for frames in range(1, 10**9):
    logger.write(frames, {"loss": frames / 7, **{f"late{i}": 1.0 for i in range(frames // 50)}})
    print(frames, flush=True)
"""


def test_sigkill_loses_at_most_the_current_row(tmp_path):
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)
        process.kill()
        done = [int(line) for line in process.stdout.read().splitlines() if line][-1]
    Logger(tmp_path, done)
    assert [int(r["frames"]) for r in rows_of(tmp_path)] == list(range(1, done + 1))
    assert scalars(tmp_path)["loss"] == [(n, float(np.float32(n / 7))) for n in range(1, done + 1)]


def test_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file': File exists; there is no good checkpoint yet"):
        Logger(tmp_path / "file")
    logger = Logger(tmp_path / "run")
    logger._csv.unlink()
    logger._csv.symlink_to("/dev/full")  # a device that is always full
    with pytest.raises(UserError, match="No space left on device"):
        logger._append(logger._csv, b"1,2\n")


@pytest.mark.parametrize(
    "damaged", ["garbage\n1\n", "updates,loss\n1,2\n", "frames,loss\none,2\n", "frames,loss\n1,2,3\n"]
)
def test_a_damaged_file_is_one_sentence_and_left_as_it_is(tmp_path, damaged):
    run(tmp_path, None, 200)
    (tmp_path / "progress.csv").write_text(damaged)
    before = scalars(tmp_path)
    with pytest.raises(UserError, match=r"progress.csv line 2: expected a number of frames"):
        Logger(tmp_path, 100)
    assert (tmp_path / "progress.csv").read_text() == damaged and scalars(tmp_path) == before
    run(tmp_path, None, 200)  # what begins anew asks nothing of it
    assert [int(r["frames"]) for r in rows_of(tmp_path)] == [100, 200]


def test_names_of_any_language_are_utf_8_wherever_they_are_written(tmp_path):
    code = """if True:
        import sys
        from pathlib import Path
        from rlcore.logger import Logger
        for resume in (None, 1):
            logger = Logger(Path(sys.argv[1]), resume)
            logger.write(1 + (resume or 0), {"eval/f1 (caf\\xe9)": 0.5, f"late{resume}": 1.0})
    """
    plain = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=plain)
    text = (tmp_path / "progress.csv").read_text(encoding="utf-8")
    assert text == "frames,eval/f1 (café),late1,lateNone\n1,0.5,,1.0\n2,0.5,1.0,\n"


def test_importing_leaks_no_warning_and_no_tensorflow():
    code = "import sys, rlcore.logger; assert 'tensorflow' not in sys.modules; assert 'matplotlib' not in sys.modules"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- meters ---


def filled(values: list[float], every: int | None = None, compact: int = 1000) -> Meter:
    """A meter fed ``values``; with ``every``, saved and loaded again each ``every`` entries."""
    meter = Meter()
    for i, value in enumerate(values):
        meter._COMPACT = compact
        metrics = {"loss": torch.tensor(value / 3, dtype=torch.float64)}
        if i % 2:
            metrics["actor_loss"] = torch.tensor(value * 2)  # a phase that does not run each time
        meter.add(i, metrics)
        meter.check()  # takes nothing away
        if every and i % every == 0:
            state = meter.state_dict()
            meter = Meter()
            meter.load_state_dict(state)
    return meter


def test_means_by_hand():
    meter = Meter()
    assert meter.flush() == {}
    meter.add(1, {"loss": torch.tensor(1.0), "count": torch.tensor(3)})
    meter.add(2, {"loss": torch.tensor(2.0), "count": torch.tensor(4)})
    meter.add(3, {"loss": torch.tensor(6.0), "critic": torch.tensor(0.5, dtype=torch.bfloat16)})
    meter.watch([2, 3], "obs", torch.tensor([0.0, 1e30]))
    assert meter.flush() == {"loss": 3.0, "count": 3.5, "critic": 0.5}
    assert meter.flush() == {}
    meter.add(4, {"loss": torch.tensor(7.0)})
    assert meter.flush() == {"loss": 7.0}


def test_means_do_not_cancel():
    assert filled([3 * 2.0**90, 3.0, -3 * 2.0**90], compact=2).flush()["loss"] == 1 / 3


FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


@given(st.lists(FLOATS, min_size=1, max_size=60), st.integers(1, 20), st.integers(1, 20))
@settings(deadline=None)
def test_means_are_exact_however_often_compacted_or_saved(values, every, compact):
    exact = {"loss": float(sum(Fraction(v / 3) for v in values) / len(values))}
    if odd := [2 * v for v in values[1::2]]:
        exact["actor_loss"] = float(sum(map(Fraction, odd)) / len(odd))
    means = filled(values, every, compact).flush()
    assert list(means) == list(exact)
    assert means == filled(values).flush()
    for name in exact:
        assert means[name] == pytest.approx(exact[name], rel=3e-16, abs=0)  # two roundings: the sum's, the quotient's


def test_memory_is_bounded():
    meter = Meter()
    for i in range(2500):
        meter.add(i, {"a": torch.tensor(float(i)), "b": torch.tensor(1.0)})
        meter.watch([2 * i, 2 * i + 1], "obs", torch.zeros(2))
        assert len(meter._entries) < 1000 and len(meter._watched) < 500
    assert 2 <= len(meter._metrics.chunks["a"]) <= 5 and 5 <= len(meter._inputs.chunks["obs"]) <= 10
    assert meter.flush() == {"a": 1249.5, "b": 1.0}


def test_the_first_bad_frame_of_a_block_is_named():
    """Whichever part of an observation broke first, and however large it is."""
    for width in (4, 2000):
        meter = Meter()
        for bad in (2, 1):
            block = torch.zeros(3, 2, width)
            block[bad:, 0] = math.nan
            meter.watch([64, 128, 192], "observation", block)
        with pytest.raises(Diverged, match=r"^'observation' became NaN at frame 128$"):
            meter.check()


def test_metrics_of_several_runs_are_held_once():
    table, meters = Table(), [Meter(), Meter()]
    for update in range(2500):
        numbers = torch.tensor([update, -update], dtype=torch.float32)
        entry = table.put({"loss": numbers, "norm": numbers + 1} if update % 2 else {"norm": numbers + 1})
        for k, meter in enumerate(meters):
            meter.note(update, entry, k)
    norms = [meter.state_dict()["metrics"]["norm"] for meter in meters]
    for norm, sign in zip(norms, (1, -1), strict=True):
        assert norm["steps"].tolist() == list(range(2500))
        assert norm["values"].tolist() == [1 + sign * update for update in range(2500)]
    assert [meter.flush() for meter in meters] == [{"norm": 1250.5, "loss": 1250.0}, {"norm": -1248.5, "loss": -1250.0}]


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(("bad", "word"), [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")])
def test_the_first_bad_step_is_named(bad, word, resumed):
    def broken(compact: int) -> Meter:
        meter = Meter()
        meter._COMPACT = compact
        for update in range(10, 40):
            meter.add(update, {"q_value": torch.tensor(bad if update > 25 else 0.0), "extra": torch.tensor(1.0)})
            meter.add(update, {"loss": torch.tensor(bad if update > 20 and update != 22 else 1.0)})
            if resumed and update == 15:
                state = meter.state_dict()
                meter = Meter()
                meter._COMPACT = compact
                meter.load_state_dict(state)
        return meter

    for compact in (3, 1000):
        for act in (Meter.flush, Meter.check, Meter.state_dict):
            with pytest.raises(Diverged, match=rf"^'loss' became {word} at update 21$"):
                act(broken(compact))
    meter = broken(7)
    meter.watch([9000], "reward", torch.zeros(1))
    meter.watch([9000, 9001, 9002], "obs", torch.tensor([0.0, bad, bad]))
    with pytest.raises(Diverged, match=rf"^'obs' became {word} at frame 9001$"):  # what came in explains the loss
        meter.flush()


def test_a_graph_is_refused():
    weight = torch.ones((), requires_grad=True)
    meter = Meter()
    with pytest.raises(ValueError, match="'loss' carries a graph"):
        meter.add(0, {"norm": torch.tensor(1.0), "loss": weight * 2})
