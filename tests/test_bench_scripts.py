"""The scripts of bench/ and the tables of the documentation: peers that are right, bars, provenance."""

import importlib
import sys
from pathlib import Path

import pytest

import cuflash
from cuflash._bench import report, timing
from cuflash._bench.report import Bar, Table
from cuflash._bench.timing import Peer

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bench(monkeypatch):
    """Import a script of bench/ or docs/ by its name."""
    for folder in ("bench", "docs"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    scripts = {path.stem for folder in ("bench", "docs") for path in (ROOT / folder).glob("*.py")}
    yield importlib.import_module
    for name in scripts & set(sys.modules):
        del sys.modules[name]


@pytest.fixture
def peers(bench):
    return bench("peers")


def test_every_installed_peer_is_right(peers, bench):
    shapes = bench("shapes")
    attention, decode = shapes.ATTENTION["512x64"], shapes.DECODE["4x1024"]
    for causal in (False, True):
        made = peers.ATTENTION.make("float32", peers.ATTENTION.operands(attention.small(), "float32", causal))
        assert {"cuflash", "naive", "in place"} <= set(made)
        assert peers.ATTENTION.right(attention, "float32", causal) == set(made)
        made = peers.BACKWARD.make("float32", peers.BACKWARD.operands(attention.small(), "float32", causal))
        assert {"cuflash", "naive", "in place"} <= set(made)
        assert peers.BACKWARD.right(attention, "float32", causal) == set(made)
    for dtype in ("float32", "float16"):
        made = peers.DECODE.make(dtype, peers.DECODE.operands(decode.small(), dtype))
        assert {"cuflash", "paged", "in place"} <= set(made)
        assert peers.DECODE.right(decode, dtype) == set(made)


def test_a_wrong_peer_is_not_timed(peers, bench, monkeypatch, capsys):
    monkeypatch.setattr(timing, "WARM", 0.0)

    def wrong(q, k, v, causal):
        return Peer(lambda: cuflash.attention(q, k, v, causal=not causal))

    entries = {
        "cuflash": peers.ATTENTION.entries["cuflash"],
        "wrong": peers.Entry(wrong),
        "absent": peers.Entry(wrong, ("no-such-package",)),
        "other": peers.Entry(lambda *operands: None),
    }
    family = peers.ATTENTION._replace(entries=entries)
    row = family.row(bench("shapes").TINY, "float32", True, rounds=1)
    assert "wrong is off by" in capsys.readouterr().out
    assert row["cuflash"] > 0 and row["wrong"] is None and row["other / cuflash"] is None
    assert "absent" not in row


def test_script_is_the_command(bench, capsys):
    with pytest.raises(SystemExit):
        bench("seeds").main(["bench", "--rounds", "0"])
    assert "from 1 on" in capsys.readouterr().err


def test_bars_of_attention(bench):
    attention = bench("attention")
    shapes = ("1024x64", "1024x128", "4096x64", "4096x128")
    rows = [
        {"shape": name, "causal": causal, "torch / cuflash": 2.0 if causal else 0.5, "naive / cuflash": 3.0}
        for name in shapes
        for causal in (False, True)
    ]
    found = {bar.text: (bar.figure, bar.met) for bar in attention.bars(rows)}
    assert found["geometric mean of torch / cuflash over 1024, 4096 x 64, 128 x full, causal"] == (
        pytest.approx(1),
        True,
    )
    assert found["least of them"] == (0.5, False)
    assert found["naive / cuflash, 4096x64, full"] == (3.0, True)
    assert found["naive / cuflash, 4096x64, causal"] == (3.0, False)
    assert {bar.met for bar in attention.bars(rows[:2])} == {None}, "not of a part of the shapes"


def test_bars_of_decode_and_backward(bench):
    def row(dtype, ours):
        return {
            "shape": "1x16384",
            "dtype": dtype,
            "cuflash": ours,
            "torch / cuflash": 1.6,
            "in place / cuflash": 0.9,
            "paged / cuflash": 1.1,
        }

    bars = bench("decode").bars([row("float32", 10.0), row("float16", 21.0), row("bfloat16", 15.0)])
    assert [bar.met for bar in bars] == [True, False, True, False, True] + [None] * 5
    rows = [{"shape": "1024x64", "torch / cuflash": figure} for figure in (0.7, 1.4)]
    assert [bar.met for bar in bench("backward").bars(rows)] == [False, True]


# The documentation's tables.


def test_pages_get_tables_with_their_provenance(bench, tmp_path):
    tables = bench("tables")
    rows = [{"l": 1, "cuflash": 1.5, "torch": 3.0, "torch / cuflash": 2.0}, {"l": 2, "cuflash": 1.0, "torch": None}]
    table = Table("a title", rows, [Bar("ratio", 2.0, ">=", 1.5)])
    now = report.machine()
    (tmp_path / "measured").mkdir()
    report.save(tmp_path / "measured" / "new.json", now, [table])
    report.save(tmp_path / "measured" / "old.json", {**now, "sources": "0123456789ab"}, [table, table])
    tables.write(tmp_path / "measured", tmp_path / "out")
    for name in ("new-1", "old-1", "old-2"):
        assert (tmp_path / "out" / f"{name}.csv").read_text() == "l,cuflash,torch\n1,1.5,3 (2×)\n2,1,–\n"
    new, old = ((tmp_path / "out" / f"{name}.inc").read_text(encoding="utf-8") for name in ("new", "old"))
    for text in (new, old):
        assert f"Measured {now['date']}: {now['cpu']}, {now['threads']} threads" in text
        assert "- ratio >= 1.5: 2, met" in text
    assert "sources have changed" in old and "sources have changed" not in new


def test_the_chart_shows_what_is_kept():
    drawn = (ROOT / "docs" / "_static" / "seeds.svg").read_text(encoding="utf-8")
    machine, tables = report.load(ROOT / "docs" / "measured" / "seeds.json")
    assert machine["date"] in drawn and machine["cpu"] in drawn
    for row in (row for table in tables for row in table.rows):
        times = f"{report.text(row['standard ms'])} → {report.text(row['cuflash ms'])} ms"
        assert times in drawn and f"{report.text(row['ratio'])}×" in drawn


def test_every_measured_table_is_on_the_page(bench):
    page = (ROOT / "docs" / "benchmarks.rst").read_text(encoding="utf-8")
    names = {path.stem for path in (ROOT / "docs" / "measured").glob("*.json")}
    assert names == set(bench("measure").JOBS)
    for name in names:
        _, kept = report.load(ROOT / "docs" / "measured" / f"{name}.json")
        for number in range(1, len(kept) + 1):
            assert f":file: generated/{name}-{number}.csv" in page
        assert f".. include:: generated/{name}.inc" in page
