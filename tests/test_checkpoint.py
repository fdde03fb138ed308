from __future__ import annotations

import ctypes
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlcore import checkpoint
from rlcore.encoding import decode, encode
from rlcore.errors import UserError

FILES = ["agent.safetensors", "state.safetensors", "state.json", "manifest.json"]
AGENT = {"net.weight": torch.arange(6.0).view(2, 3), "net.bias": torch.tensor([float("nan"), -0.0, 1e-45])}


def state_at(frames: int) -> dict:
    return {
        "frames": frames,
        "buffer": torch.full((1000,), frames),
        "rng": np.random.default_rng(frames).bit_generator.state,
    }


def save(folder: Path, *frames: int) -> list[Path]:
    return [checkpoint.save(folder, n, AGENT, state_at(n)) for n in frames]


def same(a, b) -> bool:
    """Equal in type, value and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and same(a.reshape(-1).view(torch.uint8).tolist(), b.reshape(-1).view(torch.uint8).tolist())
        )
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return np.float64(a).tobytes() == np.float64(b).tobytes() or (a != a and b != b)
    return a == b


# --- what goes in comes out ---


def test_round_trip_keeps_types_and_bits(tmp_path):
    state = {
        "list": [None, True, False, 0, -(2**63), 2**127 + 1, 0.1, -0.0, float("nan"), float("inf"), -float("inf")],
        "tuple": ((), (1, "x"), b"\x00\xff", "", "\ud800é"),
        "dict": {1: "int key", -2: 0, "1": "str key", "$tensor": "looks like a mark", "": {}},
        "a": {"b": torch.tensor(1)},
        "a/b": torch.tensor(2),
        "tensors": [
            torch.zeros(0, 3),
            torch.tensor(3.5, dtype=torch.bfloat16),
            torch.tensor([True, False]),
            torch.randint(0, 255, (3, 2), dtype=torch.uint8),
            torch.Generator().manual_seed(3).get_state(),
            torch.arange(12).view(3, 4).T[1:],
            torch.nn.Parameter(torch.ones(2)).detach(),
        ],
        "arrays": [np.arange(6, dtype=np.uint32).reshape(2, 3), np.array(1.5), np.zeros((0, 2), np.int8)],
        "scalars": [np.float32(0.1), np.int64(-3), np.bool_(True), np.uint64(2**64 - 1), np.float64(0.1)],
    }
    path = checkpoint.save(tmp_path, 12, AGENT, state)
    assert path == tmp_path / "000000000012"
    for target in (path, tmp_path):
        loaded = checkpoint.load(target)
        assert (loaded.frames, loaded.path) == (12, path)
        assert same(dict(sorted(loaded.agent.items())), dict(sorted(AGENT.items())))
        assert same(loaded.state, state)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
NESTED = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.sampled_from(["$int", "$dict", "$tuple"]), inner)
    ),
    max_leaves=20,
)


@given(NESTED)
def test_any_nesting_survives_json(state):
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(encode(state, tensors), allow_nan=False)
    assert same(decode(json.loads(text), tensors), state)


@pytest.mark.parametrize(
    "odd", [{1.5: 0}, {True: 0}, {"x": [{1, 2}]}, [torch.float32], [np.array(["s"])], [1j], [torch.Size([1])]]
)
def test_what_cannot_be_stored_is_refused_with_its_place(tmp_path, odd):
    with pytest.raises(TypeError, match=r"^state.*expected"):
        checkpoint.save(tmp_path, 0, {}, {"inner": odd})
    assert list(tmp_path.iterdir()) == []


def test_views_of_shared_storage_are_stored_alone(tmp_path):
    big = torch.arange(1_000_000.0)
    tied = torch.ones(5)
    agent = {"head": big[:4], "tail": big[4:8], "weight": tied, "alias": tied}
    path = checkpoint.save(tmp_path, 0, agent, {"row": big.view(1000, 1000)[3]})
    loaded = checkpoint.load(path)
    assert same(dict(sorted(loaded.agent.items())), dict(sorted(agent.items())))
    assert same(loaded.state["row"], torch.arange(3000.0, 4000.0))
    assert sum(file.stat().st_size for file in path.iterdir()) < 10_000


def test_a_column_of_one_row_is_stored(tmp_path):
    table = torch.tensor([[1.0, float("nan"), 3.0]], dtype=torch.float64)
    state = {"column": table[:, 2], "row": table.t()[1]}  # contiguous, with strides of 3 and 1
    loaded = checkpoint.load(checkpoint.save(tmp_path, 0, {}, state)).state
    assert loaded["column"].tolist() == [3.0] and loaded["row"].isnan().all()


def test_loaded_tensors_are_aligned_and_writable(tmp_path):
    for name in ("a", "a" * 9, "a" * 23):  # other lengths of header, other offsets in the file
        loaded = checkpoint.load(checkpoint.save(tmp_path, 0, {name: torch.ones(7)}, {"x": np.ones(3)}))
        assert loaded.agent[name].data_ptr() % 64 == 0
        loaded.agent[name].add_(1)
        loaded.state["x"][0] = 5
    assert same(checkpoint.load(tmp_path).agent[name], torch.ones(7))


# --- names, order, pruning ---


def test_latest_prune_and_names(tmp_path):
    run = tmp_path / "checkpoints"
    assert checkpoint.latest(run) is None
    paths = save(run, 10**12 - 1, 10**12, 1000, 5)
    best = checkpoint.save(run, 10**12, AGENT, state_at(77), name="best")
    (run / "notes.txt").write_text("foreign")
    (run / "000000999999.bak").mkdir()
    assert checkpoint.latest(run) == paths[1]
    checkpoint.prune(paths[1], keep=2)
    assert {p.name for p in run.iterdir()} == {paths[1].name, paths[0].name, "best", "notes.txt", "000000999999.bak"}
    assert checkpoint.load(best).state["frames"] == 77
    assert checkpoint.load(run).frames == 10**12
    checkpoint.prune(paths[1], keep=1)
    assert {p.name for p in run.iterdir()} == {paths[1].name, "best", "notes.txt", "000000999999.bak"}


def test_pruning_spares_what_was_saved_and_not_the_damaged_ones_after_it(tmp_path):
    before, good, damaged = save(tmp_path, 1, 2, 9)
    (damaged / "agent.safetensors").write_bytes(b"")
    checkpoint.prune(good, keep=1)
    assert checkpoint.load(tmp_path).path == good
    assert not before.exists() and not damaged.exists()


def test_same_frame_is_replaced(tmp_path):
    checkpoint.save(tmp_path, 7, AGENT, {"x": 1})
    checkpoint.save(tmp_path, 7, AGENT, {"x": 2})
    assert checkpoint.load(tmp_path).state == {"x": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["000000000007"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    (path,) = save(tmp_path, 7)
    best = checkpoint.save(tmp_path, 7, AGENT, state_at(7), name="best")
    for target in (path, best):
        target.rename(tmp_path / f".old-{target.name}")
        assert checkpoint.named(tmp_path, target.name) == tmp_path / f".old-{target.name}"
        assert checkpoint.load(target).state["frames"] == 7
    assert checkpoint.named(tmp_path, "other") is None
    assert checkpoint.load(tmp_path).frames == 7
    (tmp_path / ".tmp-000000000009").mkdir()
    (tmp_path / ".tmp-000000000009" / "agent.safetensors").write_bytes(b"half")
    save(tmp_path, 8)
    assert {p.name for p in tmp_path.iterdir()} == {"000000000007", "000000000008", "best"}


def test_pruning_cut_short_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    *_, newest = save(tmp_path, 1, 2, 3)

    def interrupted(path, **kwargs):
        next(Path(path).iterdir()).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.prune(newest, keep=1)
    numbered = [path for path in tmp_path.iterdir() if path.name.isdecimal()]
    assert sorted(checkpoint.load(path).frames for path in numbered) in ([2, 3], [1, 3])


def test_sentence_when_there_is_nothing_to_load(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"holds no good one; expected"):
            checkpoint.load(path)


# --- damage ---


def damages(path: Path):
    data = path.read_bytes()
    yield b""
    yield data[:-1]
    yield data[: len(data) // 2]
    yield data + b"x"
    for place in {0, 9, len(data) // 2, len(data) - 1}:
        yield data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(tmp_path, name):
    old, new = save(tmp_path, 100, 200)
    file = new / name
    good = file.read_bytes()
    for bad in damages(file):
        file.write_bytes(bad)
        said: list[str] = []
        assert checkpoint.load(tmp_path, said.append).path == old
        assert len(said) == 1
        assert str(new) in said[0]
        assert "damaged" in said[0]
        with pytest.raises(UserError, match="damaged"):
            checkpoint.load(new)
    file.unlink()
    assert checkpoint.load(tmp_path).path == old
    file.write_bytes(good)
    assert checkpoint.load(tmp_path).path == new


def test_every_flipped_byte_of_a_manifest_is_noticed(tmp_path):
    old, new = save(tmp_path, 100, 200)
    file = new / "manifest.json"
    good = file.read_bytes()
    for place in range(0, len(good), 3):
        altered = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
        file.write_bytes(altered)
        assert checkpoint.latest(tmp_path) == (new if json_equal(good, altered) else old), place
        file.write_bytes(good)


def json_equal(a: bytes, b: bytes) -> bool:
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ["BOMB"],))


def test_a_planted_pickle_is_never_run(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    bomb = pickle.dumps(Bomb())
    for name in FILES:
        _, new = save(tmp_path / name, 1, 2)
        (new / name).write_bytes(bomb)
        (new / "extra.pkl").write_bytes(bomb)
        if name != "manifest.json":  # even when the manifest vouches for it
            manifest = json.loads((new / "manifest.json").read_text())
            manifest["files"][name] = checkpoint._measure(new / name)
            del manifest["crc32"]
            manifest["crc32"] = checkpoint._own_crc(manifest)
            (new / "manifest.json").write_text(json.dumps(manifest))
            with pytest.raises(Exception, match=r"."):
                checkpoint.load(new)
        else:
            assert checkpoint.load(tmp_path / name).frames == 1
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists()  # the bomb works


# --- formats ---


def test_formats(tmp_path, monkeypatch):
    (path,) = save(tmp_path, 3)
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(UserError, match=r"has format 1 and .* reads format 2; load it with version 0\.1\.0"):
        checkpoint.load(path)
    monkeypatch.setitem(checkpoint.MIGRATIONS, 1, lambda agent, state: (agent, {**state, "added": 1}))
    assert checkpoint.load(path).state["added"] == 1
    save(tmp_path, 4)
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    with pytest.raises(UserError, match=r"has format 2 and .* reads format 1"):  # not passed over for an older one
        checkpoint.load(tmp_path)


# --- disks ---


def mount(source: str | None, target: Path, kind: str | None, flags: int, data: str = "") -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    encoded = [None if s is None else s.encode() for s in (source, str(target), kind)]
    return sys.platform == "linux" and libc.mount(*encoded, flags, data.encode()) == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if not mount("tmpfs", folder, "tmpfs", 0, "size=1m"):
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def refuse(folder: Path, frames: int, elements: int, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        checkpoint.save(folder, frames, AGENT, {"x": torch.zeros(elements)})
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_full_disk(small_disk):
    folder = small_disk / "checkpoints"
    refuse(folder, 1, 500_000, r"No space left on device; there is no good checkpoint yet")
    (good,) = save(folder, 2)
    refuse(folder, 3, 500_000, rf"No space left on device; the last good checkpoint is '{good}'")
    refuse(folder, 2, 500_000, r"No space left on device")  # the one it would replace is still there
    assert same(checkpoint.load(folder).state, state_at(2))
    assert [p.name for p in folder.iterdir()] == [good.name]
    filler = small_disk / "filler"  # room for the tensors, none for the small files after them
    filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 4096 * 2))
    refuse(folder, 4, 10, r"No space left on device")
    assert [p.name for p in folder.iterdir()] == [good.name]
    filler.unlink()
    assert save(folder, 5) == [checkpoint.latest(folder)]


def test_read_only_disk(small_disk):
    _, good = save(small_disk, 1, 2)
    assert mount(None, small_disk, None, 32 | 1)  # MS_REMOUNT | MS_RDONLY
    refuse(small_disk, 3, 10, rf"Read-only file system; the last good checkpoint is '{good}'")
    with pytest.raises(UserError, match="Read-only"):
        checkpoint.prune(good, keep=1)
    assert checkpoint.load(small_disk).path == good


def test_file_size_limit(tmp_path):
    (good,) = save(tmp_path, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        refuse(tmp_path, 3, 100_000, rf"File too large; the last good checkpoint is '{good}'")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == [good.name]


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    refuse(tmp_path / "file", 1, 1, "File exists; there is no good checkpoint yet")
    refuse(tmp_path / "file" / "below", 1, 1, "Not a directory; there is no good checkpoint yet")


def test_space_is_required_beforehand(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    checkpoint.require_space(tmp_path / "not" / "yet", free // 2)
    with pytest.raises(UserError, match=r"MB free and the run needs about [\d,]+ MB"):
        checkpoint.require_space(tmp_path / "not" / "yet", free * 2)
    assert not (tmp_path / "not").exists()
    assert checkpoint.nbytes({"w": torch.zeros(3)}, [torch.zeros(2, dtype=torch.uint8), (np.zeros(1),)]) == 12 + 2 + 8


# --- kills ---

KILLS = 30
WRITER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from rlcore import checkpoint

torch.set_num_threads(1)
folder, kills = Path(sys.argv[1]), int(sys.argv[2])

def write(n):
    state = {"frames": n, "buffer": torch.full((200_000,), n)}
    agent = {"w": torch.full((1000,), float(n))}
    saved = checkpoint.save(folder, 100 + n // 3, agent, state)  # each frame three times: replaced
    checkpoint.save(folder, n, agent, state, name="best")
    checkpoint.prune(saved, keep=2)

def damaged(sentence):
    raise AssertionError(sentence)

began = time.monotonic()
write(0)
write(1)
pace = (time.monotonic() - began) / 2
moments, done = random.Random(0), 1
for _ in range(kills):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        n = done
        while True:
            n += 1
            write(n)
            os.write(writer, b"%d " % n)
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        told, writes = b"", moments.randrange(5)
        while told.count(b" ") < writes:  # however slow the disk is
            byte = pipe.read(1)
            assert byte, "the writer ended"
            told += byte
        time.sleep(moments.uniform(0.0, 2 * pace))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done = max([done, *map(int, (told + pipe.read()).split())])
    for loaded in (checkpoint.load(folder, damaged), checkpoint.load(folder / "best")):
        n = loaded.state["frames"]
        assert n in (done, done + 1), (n, done)  # nothing that was finished is lost
        assert torch.equal(loaded.state["buffer"], torch.full((200_000,), n))
        assert torch.equal(loaded.agent["w"], torch.full((1000,), float(n)))
print(done)
"""


def test_sigkill_at_any_moment_leaves_a_good_checkpoint(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(KILLS)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) > KILLS  # the writers got somewhere
