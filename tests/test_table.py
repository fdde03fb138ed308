"""Reading tables, fitting their preprocessing on the training rows only, encoding, and the report."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.columns import OWN, Encoding, Numeric
from envs.fitting import Prepared, prepare
from envs.options import Preparation
from envs.report import render, report
from envs.table import PARTS, Table, partition, read
from rlcore.errors import UserError


def table(**columns: list[Any]) -> Table:
    cells = {name: [str(cell) for cell in column] for name, column in columns.items()}
    return Table("t", cells, list(range(2, 2 + len(next(iter(cells.values()))))))


def prepared(t: Table, held_out: int = 0, **options: Any) -> Prepared:
    """Prepare; ``held_out`` rows are split off (by the seeded permutation) for each of validation and test."""
    fraction = held_out / len(t)
    return prepare(t, Preparation(**{"target": "y", **options}), fraction, fraction, seed=0)


def encoded(t: Table, **options: Any) -> list[list[float]]:
    p = prepared(t, **options)
    return p.encoding.encode(t.take(p.parts["train"])).tolist()


# Reading


def write(folder: Path, text: str | bytes, name: str = "t.csv") -> str:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_reads_quotes_bom_crlf_blank_lines_and_line_numbers(tmp_path):
    text = '\ufeffname, "a, ""b""",y\r\n"x, z",1,2\r\n\r\n"two\r\nlines", 3 ,4\r\nlast,"5",6\r\n'
    t = read(write(tmp_path, text))
    assert t.cells == {"name": ["x, z", "two\r\nlines", "last"], 'a, "b"': ["1", "3", "5"], "y": ["2", "4", "6"]}
    assert t.lines == [2, 4, 6]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("城市,房价\n北京,5\n上海,6\n", "t.csv"),
        ("城市\t房价\n北京\t5\n上海\t6\n", "t.tsv"),
        ("城市\t房价\n北京\t5\n上海\t6\n", "t.txt"),
        ("城市;房价\n北京;5\n上海;6\n", "t.csv"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_reads_chinese_text_in_every_format(tmp_path, text, name, zipped):
    data = text.encode()
    path = write(tmp_path, gzip.compress(data), name + ".gz") if zipped else write(tmp_path, data, name)
    assert read(path).cells == {"城市": ["北京", "上海"], "房价": ["5", "6"]}


def test_a_tsv_may_hold_commas_in_its_header(tmp_path):
    assert list(read(write(tmp_path, "a, b, c\ty\n1\t2\n", "t.tsv")).cells) == ["a, b, c", "y"]


def test_a_changed_file_is_read_again(tmp_path):
    assert read(write(tmp_path, "a\n1\n")).cells == {"a": ["1"]}
    assert read(write(tmp_path, "a\n1\n22\n")).cells == {"a": ["1", "22"]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the file is empty, expected a header line and rows"),
        ("\n \n", "the file is empty, expected a header line and rows"),
        ("a,b\n", "there is a header but no rows"),
        ("a,b\n1,2\n3\n", "line 3: got 1 cells, expected 2 as in the header"),
        ('a,b\n"1\n1",2\n3,4,5\n', "line 4: got 3 cells, expected 2 as in the header"),
        ("a,b, a\n1,2,3\n", "the header names 'a' twice, expected distinct columns"),
        ('a,b\n"1,2\n', "line 2: expected comma- or tab-separated text, got unexpected end of data"),
        (b"a,b\n\xff,2\n", "expected UTF-8 text, got byte 0xff at 4"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], "expected a readable CSV file, got "),
    ],
)
def test_an_unusable_file_is_named_with_its_line(tmp_path, text, sentence):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(path)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_an_absent_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"no\.csv: got No such file or directory, expected a CSV.*sacramento"):
        read(tmp_path / "no.csv")
    with pytest.raises(UserError, match=r"expected a readable CSV file, got .*[Dd]irectory"):
        read(tmp_path)


def test_columns_of_numbers():
    t = table(a=["1", "-2.5e1", "NA"], b=["1", "x", "2"], c=["", "NaN", "null"], d=["1_000", "2", "3"])
    np.testing.assert_array_equal(t.numbers("a"), [1, -25, np.nan])
    assert t.numbers("b") is None
    np.testing.assert_array_equal(t.numbers("c"), [np.nan] * 3)
    assert t.numbers("d") is None  # Python's digit separators are no numbers in a file
    for cell in ("inf", "-Infinity", "1e999", "1e39"):
        with pytest.raises(UserError, match=f"t line 3, column 'a': got '{cell}', expected a finite number"):
            table(a=["1", cell]).numbers("a")


# Splitting


@given(
    st.integers(10, 300),
    st.floats(0.1, 0.4),
    st.floats(0.1, 0.4),
    st.integers(0, 2**32),
    st.randoms(use_true_random=False),
)
def test_the_parts_are_disjoint_exhaustive_and_a_matter_of_the_seed(n, validation, test, seed, random):
    rows = np.array(sorted(random.sample(range(10 * n), n)))
    parts = partition(rows, validation, test, seed)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == rows.tolist()
    assert len(parts["test"]) == round(n * test)
    assert len(parts["validation"]) == round(n * validation)
    again = partition(rows, validation, test, seed)
    assert all(np.array_equal(parts[part], again[part]) for part in PARTS)


def test_another_seed_holds_out_other_rows():
    rows = np.arange(100)
    a, b = (set(partition(rows, 0.2, 0.2, seed)["test"].tolist()) for seed in (0, 1))
    assert len(a & b) < 15


def test_an_empty_part_is_refused():
    with pytest.raises(UserError, match=r"the validation split is empty: 4 rows are too few for a fraction of 0\.1"):
        partition(np.arange(4), 0.1, 0.5, 0)
    with pytest.raises(UserError, match="the train split is empty"):
        partition(np.arange(3), 0.45, 0.5, 0)
    assert not len(partition(np.arange(4), 0.0, 0.5, 0)["validation"])


# Fitting and encoding, worked out by hand


def test_numbers_are_standardised_by_mean_and_population_deviation():
    # mean 5, deviations -3 -1 1 3, variance 5
    x = encoded(table(a=[2, 4, 6, 8], y=[1, 2, 3, 4]))
    np.testing.assert_allclose(x, np.array([[-3], [-1], [1], [3]]) / 5**0.5, rtol=1e-6)


def test_categories_are_one_hot_in_sorted_order_beside_numbers():
    p = prepared(table(c=["b", "a", "c", "a"], a=[0, 2, 0, 2], y=[1, 2, 3, 4]))
    assert p.encoding.outputs == ["c=a", "c=b", "c=c", "a"]
    assert p.encoding.encode([{"c": "c", "a": 3}, {"c": "a", "a": "1"}]).tolist() == [[0, 0, 1, 2], [1, 0, 0, 0]]


def test_unknown_categories_are_zeros_and_counted():
    encoding = prepared(table(c=["b", "a", "b"], d=["u", "v", "v"], y=[1, 2, 3])).encoding
    rows = [{"c": "z", "d": "u"}, {"c": "a", "d": "w"}, {"c": "q", "d": "v"}]
    assert encoding.encode(rows).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    assert encoding.unknown(rows) == {"c": 2, "d": 1}


@pytest.mark.parametrize(("policy", "fill"), [("mean", 3.0), ("median", 2.0)])
def test_missing_numbers_are_filled(policy, fill):
    p = prepared(table(a=[1, 2, 6, "", ""], y=[1, 2, 3, 4, 5]), missing=policy)
    feature = p.encoding.features[0]
    assert isinstance(feature, Numeric)
    assert feature.fill == fill
    filled = np.array([1, 2, 6, fill, fill])
    assert (feature.mean, feature.std) == (filled.mean(), filled.std())
    expected = ((filled - filled.mean()) / filled.std())[:, None]
    np.testing.assert_allclose(
        encoded(table(a=[1, 2, 6, "NA", ""], y=[1, 2, 3, 4, 5]), missing=policy), expected, rtol=1e-6
    )
    assert p.encoding.encode([{"a": None}, {"a": float("nan")}]).unique().tolist() == pytest.approx([expected[3, 0]])


def test_missing_categories_have_their_own_where_training_lacks_some_else_the_most_frequent():
    encoding = prepared(table(c=["a", "", "b"], d=["v", "u", "v"], y=[1, 2, 3])).encoding
    assert encoding.outputs == ["c=a", "c=b", f"c={OWN}", "d=u", "d=v"]
    assert encoding.encode([{"c": "", "d": ""}]).tolist() == [[0, 0, 1, 0, 1]]
    assert encoding.unknown([{"c": "", "d": ""}]) == {"c": 0, "d": 0}


def test_missing_drop_leaves_rows_out_of_every_part():
    t = table(a=[*range(18), "", ""], b=[""] + [1, 2] * 9 + [3], y=range(20))
    p = prepared(t, held_out=6, missing="drop")
    kept = np.sort(np.concatenate(list(p.parts.values())))
    assert kept.tolist() == list(range(1, 18))
    assert sum(counts["missing"] for counts in p.dropped.values()) == 3
    assert p.parts.keys() == p.dropped.keys()
    with pytest.raises(UserError, match="new rows line 2, column 'a': the value is missing, expected one"):
        p.encoding.encode([{"a": 1, "b": 1}, {"a": "", "b": 1}])


def test_missing_error_names_the_first():
    with pytest.raises(UserError, match="t line 4, column 'a': the value is missing, expected one"):
        prepared(table(a=[1, 2, "", 4], y=[1, 2, 3, 4]), missing="error")
    with pytest.raises(UserError, match="t line 2, column 'y': the value is missing, expected one"):
        prepared(table(a=[1, 2], y=["", 4]), missing="error")


def test_rows_without_a_target_are_left_out():
    p = prepared(table(a=[1, 2, 3, 4], y=[1, "", 3, "nan"]))
    assert p.parts["train"].tolist() == [0, 2]
    assert report(p)["no_target"] == 2
    with pytest.raises(UserError, match="t: no rows are left, the target 'y' is missing in all of them"):
        prepared(table(a=[1, 2], y=["", "NA"]))


def test_fences():
    # 0 1 2 3 4 and 100: quartiles 1.25 and 3.75, fences -2.5 and 7.5
    t = table(a=[0, 1, 2, 3, 4, 100], flag=[0, 0, 0, 0, 0, 1], y=range(6))
    assert prepared(t).fences == {"a": (-2.5, 7.5), "y": (-2.5, 7.5)}  # the flag has no interquartile range
    # twelve of 0 and one of 13: mean 1, variance 12
    z = prepared(table(a=[0] * 12 + [13], y=range(13)), fences="zscore").fences["a"]
    assert z == pytest.approx((1 - 3 * 12**0.5, 1 + 3 * 12**0.5))


def test_clip_moves_features_to_the_training_fences_everywhere_and_leaves_the_target():
    t = table(a=[0, 1, 2, 3, 4, 100], y=[0, 1, 2, 3, 4, 100])
    p = prepared(t, outliers="clip")
    clipped = np.array([0, 1, 2, 3, 4, 7.5])
    np.testing.assert_allclose(p.encoding.encode(t).flatten(), (clipped - clipped.mean()) / clipped.std(), rtol=1e-6)
    assert torch.equal(p.encoding.encode([{"a": 9e9}]), p.encoding.encode([{"a": 7.5}]))
    assert p.encoding.target.encode(t).flatten().tolist() == [0, 1, 2, 3, 4, 100]


def test_drop_leaves_outlying_features_and_targets_out_of_training_only():
    t = table(a=[*range(29), 1000], y=[-1000, *range(29)])
    p = prepared(t, outliers="drop")
    assert p.parts["train"].tolist() == list(range(1, 29))
    assert p.dropped["train"] == {"missing": 0, "outliers": 2}
    parts = partition(np.arange(30), 0.2, 0.2, seed=0)
    t = table(a=[1000 if i in parts["test"][:2] else i for i in range(30)], y=range(30))
    p = prepared(t, held_out=6, outliers="drop")
    assert all(np.array_equal(p.parts[part], parts[part]) for part in PARTS)


def test_nothing_is_fitted_on_held_out_rows():
    """Replace every held-out cell by something wild: the fitted state does not move."""
    n = 40
    rng = np.random.default_rng(0)
    t = table(
        a=rng.normal(size=n), b=["", *rng.normal(size=n - 1)], c=rng.choice(["u", "v", ""], n), y=rng.normal(size=n)
    )
    wild = {"a": "1e6", "b": "", "c": "wild", "y": "-1e6"}
    for options in (
        {"missing": "mean", "outliers": "clip", "standardize_target": True},
        {"missing": "median", "outliers": "drop", "fences": "zscore"},
        {"kind": "classification", "bins": 3, "outliers": "clip"},
    ):
        p = prepared(t, held_out=10, **options)
        train = {*p.parts["train"].tolist()} | ({*range(n)} - {*np.concatenate(list(p.parts.values())).tolist()})
        changed = table(**{k: [v if i in train else wild[k] for i, v in enumerate(t.cells[k])] for k in t.cells})
        assert prepared(changed, held_out=10, **options).encoding == p.encoding


def test_constant_and_empty_columns_are_left_out():
    t = table(
        a=[1, 2, 3], k=[7, 7, 7], tiny=["1e-200", "2e-200", "3e-200"], e=["", "", ""], s=["x", "x", "x"], y=[1, 2, 3]
    )
    assert prepared(t).encoding.outputs == ["a"]
    with pytest.raises(UserError, match=r"t: none of the features \['k', 's'\] varies over the training rows"):
        prepared(t, features=["k", "s"])


def test_a_standardised_target_decodes_to_its_units():
    t = table(a=[1, 2, 3], y=[10, 20, 60])
    target = prepared(t, standardize_target=True).encoding.target
    assert (target.mean, target.std) == (30, np.array([10, 20, 60]).std())
    z = target.encode(t)
    assert z.shape == (3, 1)
    assert z.sum().item() == pytest.approx(0, abs=1e-6)
    assert target.decode(z) == pytest.approx([10, 20, 60])


def test_bins_are_quantile_classes():
    # terciles of 0..8: edges 8/3 and 16/3
    t = table(a=range(9), y=range(9))
    encoding = prepared(t, kind="classification", bins=3).encoding
    assert encoding.target.encode(t).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert encoding.target.classes == ("y < 2.66667", "2.66667 <= y < 5.33333", "y >= 5.33333")
    assert encoding.decode(torch.tensor([2, 0])) == ["y >= 5.33333", "y < 2.66667"]
    assert encoding.decode(torch.tensor([[0.1, 0.9, 0.0]])) == ["2.66667 <= y < 5.33333"]
    on_the_edge = prepared(table(a=range(5), y=range(5)), kind="classification", bins=2).encoding.target  # y = 2
    assert on_the_edge.encode(table(y=range(5))).tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(UserError, match="t: target 'y' has too few distinct values for bins=3"):
        prepared(table(a=range(4), y=[0, 0, 0, 1]), kind="classification", bins=3)


def test_labels_sort_as_numbers_if_they_are():
    assert prepared(table(a=range(4), y=[10, 9, 2, 9]), kind="classification").encoding.target.classes == (
        "2",
        "9",
        "10",
    )
    t = table(a=range(3), y=["是", "否", "是"])
    target = prepared(t, kind="classification").encoding.target
    assert target.encode(t).tolist() == [1, 0, 1]
    with pytest.raises(UserError, match="t line 2: class '对' of 'y' is unknown; known: 否, 是"):
        target.encode(table(y=["对"]))


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ({}, {"target": "prise"}, "t: there is no column 'prise'; did you mean 'price'?"),
        ({}, {"target": "price", "features": ["a", "sqfoot"]}, "t: there is no column 'sqfoot'; did you mean 'sqft'?"),
        ({}, {"target": "price", "features": ["price"]}, "features: 'price' is the target, expected other columns"),
        ({}, {"target": "price", "features": []}, "features: got [], expected distinct columns"),
        ({}, {"target": "price", "features": ["a", "a"]}, "features: got ['a', 'a'], expected distinct columns"),
        ({"price": [1, 2, "dear"]}, {"target": "price"}, "t line 4: target 'price' is 'dear', expected a number"),
        ({"price": [5, 5, 5]}, {"target": "price"}, "t: target 'price' is 5 in every training row"),
        (
            {"price": ["k", "k", "k"]},
            {"target": "price", "kind": "classification"},
            "has 1 classes, expected 2 to 1000",
        ),
        ({"a": [1, "inf", 3]}, {"target": "price"}, "t line 3, column 'a': got 'inf', expected a finite number"),
        (
            {"a": ["", "", ""]},
            {"target": "price", "missing": "drop"},
            "no rows are left to train on after missing='drop'",
        ),
    ],
)
def test_bad_columns_get_one_sentence(columns, options, sentence):
    t = table(**{"a": [1, 2, 3], "sqft": [4, 5, 6], "price": [7, 8, 9], **columns})
    with pytest.raises(UserError) as error:
        prepared(t, **options)
    assert sentence in str(error.value)


def test_text_is_no_category():
    t = table(a=range(1001), text=[f"t{i}" for i in range(1001)], y=range(1001))
    with pytest.raises(UserError, match=r"column 'text' has 1001 distinct texts.*features=\[\.\.\.\]"):
        prepared(t)
    assert prepared(t, features=["a"]).encoding.outputs == ["a"]


def test_new_rows_are_checked():
    encoding = prepared(table(sqft=[1, 2, 3], c=["u", "v", "u"], y=[1, 2, 3])).encoding
    with pytest.raises(UserError, match="new rows: got none"):
        encoding.encode([])
    with pytest.raises(UserError, match="new rows line 2: there is no column 'sqft'; did you mean 'sqrt'"):
        encoding.encode([{"sqft": 1, "c": "u"}, {"sqrt": 1, "c": "u"}])
    with pytest.raises(UserError, match="new rows line 1, column 'sqft': got 'big', expected a number"):
        encoding.encode([{"sqft": "big", "c": "u"}])
    with pytest.raises(UserError, match="new rows line 1, column 'sqft': got 'inf', expected a finite number"):
        encoding.encode([{"sqft": float("inf"), "c": "u"}])
    with pytest.raises(UserError, match="new rows line 2, column 'sqft': the value is too far from the training rows"):
        encoding.encode([{"sqft": 2, "c": "u"}, {"sqft": 3e38, "c": "u"}])
    with pytest.raises(UserError, match="t line 2, column 'sqft': got 'big', expected a number"):
        encoding.encode(table(sqft=["big"], c=["u"]))


# Saving


def test_the_state_survives_json_to_the_bit():
    rng = np.random.default_rng(1)
    t = table(
        a=rng.lognormal(size=60),
        b=["", *rng.normal(size=59)],
        c=rng.choice(["北", "南", ""], 60),
        y=rng.normal(size=60),
    )
    for options in (
        {"outliers": "clip", "standardize_target": True},
        {"kind": "classification", "bins": 4, "missing": "median"},
    ):
        encoding = prepared(t, **options).encoding
        restored = Encoding.from_state(json.loads(json.dumps(encoding.state(), allow_nan=False)))
        assert restored == encoding
        assert torch.equal(restored.encode(t), encoding.encode(t))
        prediction = torch.randn(60, 4 if encoding.target.classes else 1, generator=torch.Generator().manual_seed(0))
        assert restored.decode(prediction) == encoding.decode(prediction)


def test_a_broken_state_is_refused():
    state = prepared(table(a=[1, 2, 3], y=[1, 2, 3])).encoding.state()
    state["features"][0]["std"] = 0.0
    with pytest.raises(
        UserError, match=r"saved encoding: features\.0\.numeric\.std: got 0\.0, expected .*greater than 0"
    ):
        Encoding.from_state(state)
    with pytest.raises(UserError, match=r"saved encoding: features: .*expected Field required"):
        Encoding.from_state({})


def test_a_saved_encoding_replaces_fitting():
    """Fine-tuning on new rows: old statistics and categories, whatever the new rows would give."""
    old = prepared(table(a=[2, 4, 6, 8], c=["u", "v", "u", "v"], y=[1, 2, 3, 4]), standardize_target=True).encoding
    new = table(y=[9, 8], c=["w", "u"], a=[5, 5], extra=["", ""])
    p = prepare(new, Preparation(target="y"), 0.0, 0.0, seed=0, encoding=old)
    assert p.encoding == old
    assert p.encoding.encode(new).tolist() == [[0, 0, 0], [0, 1, 0]]
    assert {c["name"]: c["role"] for c in report(p)["columns"]} == {
        "y": "target",
        "c": "feature",
        "a": "feature",
        "extra": "left out",
    }


CELLS = ["0", "1", "-2.5", "1e30", "3e38", "1e-300", "7.0", "", "NA", "2e-300", "x", "北 京", "1_0", "nan", "inf"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([2, 8, len(CELLS)]).flatmap(  # few cells make flags, eight make numbers
            lambda n: st.lists(st.sampled_from(CELLS[:n]), min_size=12, max_size=12)
        ),
        min_size=2,
        max_size=4,
    ),
    st.sampled_from(["drop", "mean", "median", "error"]),
    st.sampled_from(["keep", "clip", "drop"]),
    st.sampled_from(["iqr", "zscore"]),
    st.sampled_from(
        [{}, {"standardize_target": True}, {"kind": "classification"}, {"kind": "classification", "bins": 2}]
    ),
)
def test_any_table_gives_finite_examples_or_one_sentence(columns, missing, outliers, fences, task):
    t = table(**dict(zip("yabc", columns, strict=False)))
    try:
        p = prepared(t, held_out=3, missing=missing, outliers=outliers, fences=fences, **task)
        parts = [t.take(rows) for rows in p.parts.values()]
        examples = [(p.encoding.encode(part), p.encoding.target.encode(part)) for part in parts if len(part)]
    except UserError:
        return
    for x, y in examples:
        assert x.isfinite().all()
        assert y.isfinite().all()
        assert x.shape == (len(y), len(p.encoding.outputs))
    assert Encoding.from_state(json.loads(json.dumps(p.encoding.state()))) == p.encoding
    render(json.loads(json.dumps(report(p), allow_nan=False)))


# The report


def test_the_report_by_hand():
    t = table(
        a=[0, 1, 2, 3, 4, 100, 0], c=["u", "", "v", "u", "v", "v", "u"], k=[1] * 7, n=["x", *"123456"], y=[*range(6), 0]
    )
    t.cells["n"][6] = "x"
    r = report(prepared(t, features=["a", "c", "k"], outliers="clip"))
    assert (r["source"], r["rows"], r["duplicates"], r["no_target"]) == ("t", 7, 1, 0)
    assert r["parts"] == {
        "train": {"rows": 7, "missing": 0, "outliers": 0},
        "validation": {"rows": 0, "missing": 0, "outliers": 0},
        "test": {"rows": 0, "missing": 0, "outliers": 0},
    }
    a, c, k, n, y = r["columns"]
    assert a == {
        "name": "a",
        "role": "feature",
        "type": "numeric",
        "missing": 0,
        "distinct": 6,
        "min": 0.0,
        "mean": 110 / 7,
        "max": 100.0,
        "outliers": 1,  # quartiles 0.5 and 3.5, upper fence 8
        "unknown": 0,
        "done": a["done"],
    }
    assert a["done"].startswith("clipped to [-4, 8], missing = ")
    assert (c["type"], c["missing"], c["distinct"], c["min"], c["outliers"]) == ("categorical", 1, 2, None, None)
    assert c["done"] == "one-hot, 3 categories, missing = own category"
    assert (k["role"], k["done"]) == ("left out", "constant in the training rows")
    assert (n["role"], n["done"]) == ("left out", "not a feature")
    assert (y["role"], y["done"]) == ("target", "as it is")
    json.dumps(r, allow_nan=False)


def test_the_report_counts_unknown_categories_of_held_out_rows():
    parts = partition(np.arange(20), 0.2, 0.2, seed=0)
    c = ["new" if i in (*parts["test"], parts["validation"][0]) else "uv"[i % 2] for i in range(20)]
    r = report(prepared(table(c=c, y=range(20)), held_out=4))
    assert r["columns"][0]["unknown"] == 5


def test_the_report_as_text():
    p = prepared(table(城市=["[b]北京", "上海", "", "上海"], y=[1, 2, 3, 4]))
    lines = render(report(p)).splitlines()
    assert lines[0] == "t: 4 rows, 0 duplicated, 0 without target"
    assert lines[1] == "  train: 4 rows; left out: 0 for missing values, 0 as outliers"
    assert lines[4].split()[:6] == ["name", "role", "type", "missing", "distinct", "min"]
    assert " ".join(lines[5].split()) == "城市 feature categorical 1 2 0 one-hot, 3 categories, missing = own category"
