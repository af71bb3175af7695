"""The benchmarks time what is right and nothing else, print every column, keep what they read, and draw it alike."""

import json

import numpy as np
import pytest

import cuflash
from cuflash import __main__ as command_line
from cuflash import reference
from cuflash._bench import report, seeds, standard, timing
from cuflash._bench.report import Bar, Table
from cuflash._bench.timing import Peer

MACHINE = {
    "date": "2026-01-02", "cpu": "A CPU", "threads": 2, "python": "3.10.1", "numpy": "2.0.0", "blas": "openblas 0.3",
    "kernels": "Haswell", "cuflash": "0.1.0", "sources": "0123456789ab", "peers": {"torch": "2.5.0"},
}  # fmt: skip
CLOCK_STEP = 0.03


@pytest.fixture
def clock(monkeypatch):
    """A clock on which looking takes no time: calls move it."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    fake = Clock()
    monkeypatch.setattr(timing, "time", fake)
    return fake


# timing


def test_peers_take_turns_and_are_warm_when_they_count(clock):
    log = []

    def peer(name, seconds):
        def call():
            log.append(name)
            clock.now += seconds * (1 if log[-2:-1] == [name] else 7)  # the first call after another peer's is slow

        return call

    taken = timing.alternate({"quick": peer("quick", CLOCK_STEP), "slow": peer("slow", 1.0)}, rounds=3)
    assert [name for i, name in enumerate(log) if log[i - 1] != name] == ["quick", "slow"] * 3
    np.testing.assert_allclose(taken["quick"], [CLOCK_STEP] * 3)
    np.testing.assert_allclose(taken["slow"], [1.0] * 3)
    assert log.count("slow") == 6, "one call warms a slow peer, one counts"
    assert CLOCK_STEP * (log.count("quick") / 3 + 5) > timing.WARM


def test_columns_are_medians_and_ratios_to_the_first(clock):
    calls = {"ours": iter([0.2] * 2 + [0.3] * 2 + [9.0] * 2), "theirs": iter([0.5] * 2 + [0.6] * 2 + [0.7] * 2)}

    def peer(name):
        def call():
            clock.now += next(calls[name])

        return Peer(call)

    row = timing.compare({name: peer(name) for name in calls}, rounds=3)
    assert row == {"ours": 300.0, "theirs": 600.0, "theirs / ours": 2.0, "spread, %": 733.3}


def test_a_mean_over_many_calls(clock):
    def call():
        clock.now += 0.25

    assert timing.compare({"ours": Peer(call)}, rounds=1, number=4, unit=1e6)["ours"] == 250000.0


def test_peak_memory_leaves_out_the_result():
    def call():
        scratch = np.ones(3_000_000, np.uint8)
        return scratch[:1_000_000].copy()

    assert 3e6 <= timing.peak_bytes(call) < 3.1e6
    assert timing.peak_bytes(lambda: None) < 1e4


@pytest.mark.parametrize(
    ("actual", "error"), [([3.0, 4.0], 0), ([3.0, 4.5], 0.1), ([3.0], np.inf), ([np.nan, 4], np.nan)]
)
def test_relative_error(actual, error):
    expected = np.array([3.0, 4.0])
    np.testing.assert_equal(timing.relative_error(np.array(actual), expected), error)
    both = timing.relative_error((expected, np.array(actual)), (expected, expected))
    np.testing.assert_equal(both, error)


# standard attention


@pytest.mark.parametrize("formula", [standard.naive, standard.in_place])
@pytest.mark.parametrize("causal", [False, True])
def test_standard_attention(formula, causal):
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 3, 33, 8))
    expected = reference.attention(q, k, v, causal=causal)
    np.testing.assert_allclose(formula(q, k, v, causal), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_standard_decoding_in_runs_of_keys(dtype, monkeypatch):
    monkeypatch.setattr(standard, "RUN", 16)
    monkeypatch.setattr(standard, "CONVERTED_RUN", 10)
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((2, 6, 8)), *rng.standard_normal((2, 2, 37, 3, 8)).astype(dtype)
    expected = reference.attention(q[:, :, None], k.swapaxes(1, 2), v.swapaxes(1, 2))[:, :, 0]
    np.testing.assert_allclose(standard.decode_in_place(q, k, v), expected, rtol=1e-12, atol=1e-13, strict=True)


# the two tables


@pytest.fixture
def instant(monkeypatch):
    """No warming: the figures mean nothing, their places and kinds do."""
    monkeypatch.setattr(timing, "WARM", 0.0)


PUBLISHED = [
    (1, 512, 12.3, 7.1), (2, 1024, 45.8, 22.6), (3, 2048, 178.6, 87.3),
    (4, 512, 34.5, 18.2), (5, 1024, 78.6, 35.1), (6, 2048, 150.2, 65.9),
]  # fmt: skip


def test_rows_carry_what_was_published(instant, monkeypatch):
    kinds = [kind._replace(make=lambda length, make=kind.make: make(min(length, 65))) for kind in seeds.KINDS]
    monkeypatch.setattr(seeds, "KINDS", kinds)
    tables = seeds.tables(seeds.LENGTHS, rounds=1)
    rows = [row for table in tables for row in table.rows]
    assert [
        (row["row"], row["l"], row["published standard ms"], row["published method ms"]) for row in rows
    ] == PUBLISHED
    for row in rows:
        assert row["published ratio"] == pytest.approx(row["published standard ms"] / row["published method ms"], 1e-3)
        assert row["ratio"] == pytest.approx(row["standard ms"] / row["cuflash ms"], 1e-2)
        assert row["published saved, %"] == 40
    bars = [bar for table in tables for bar in table.bars]
    assert [(bar.figure, bar.relation, bar.limit) for bar in bars] == [
        (row["ratio"], ">", row["published ratio"]) for row in rows
    ]


def test_memory_for_scores(instant):
    """At l = 257 standard attention holds 8 heads of 257 x 257 float32 scores more than once, in place once."""
    scores = 8 * 257 * 257 * 4 / 1e6
    attention, decoding = (table.rows[0] for table in seeds.tables([257], rounds=1))
    for row in (attention, decoding):
        assert 2 * scores < row["standard MB"] < 5 * scores
        assert row["saved, %"] == pytest.approx(100 * (1 - row["cuflash MB"] / row["standard MB"]), abs=0.15)
        assert row["row"] is None and row["published ratio"] is None
    assert scores < attention["in place MB"] < 1.5 * scores
    assert decoding["cached, in place MB"] < 0.1
    assert decoding["saved, %"] > 90


@pytest.mark.parametrize("name", ["attention", "decode"])
def test_nothing_wrong_is_timed(name, instant, monkeypatch):
    right = getattr(cuflash, name)
    monkeypatch.setattr(cuflash, name, lambda *args, **options: right(*args, **options) * np.float32(1 + 1e-5))
    with pytest.raises(AssertionError, match="bench: cuflash is off by"):
        seeds.tables([16], rounds=1)


# report


def test_bars():
    assert str(Bar("ratio", 1.5, ">=", 1.5)) == "bar: ratio >= 1.5: 1.5, met"
    assert str(Bar("ratio", 1.5, ">", 1.5)) == "bar: ratio > 1.5: 1.5, NOT MET"
    assert str(Bar("ratio", 2.5, "<=", 2)) == "bar: ratio <= 2: 2.5, NOT MET"
    assert str(Bar("ratio", None, "<=", 2)) == "bar: ratio <= 2: not measured"
    rows = [{"a": 1.0}, {"a": 4.0}, {}]
    assert report.geometric_mean(report.column(rows[:2], "a")) == pytest.approx(2.0)
    assert report.geometric_mean(report.column(rows, "a")) is None
    assert report.column([], "a") is None


def example():
    rows = [{"l": 512, "fast": True, "cuflash": 1.2345, "other peer / cuflash": 2.0}, {"l": 2048, "cuflash": 12345.6}]
    return Table("a title", rows, [Bar("ratio", 2.0, ">=", 1.5), Bar("other", None, "<=", 1.0)], "a note")


def test_every_column_is_printed(capsys):
    report.show(example())
    assert capsys.readouterr().out.splitlines() == [
        "",
        "a title",
        "                     other peer",
        "   l  fast  cuflash   / cuflash",
        " 512   yes     1.23           2",
        "2048     -    12346           -",
        "bar: ratio >= 1.5: 2, met",
        "bar: other <= 1: not measured",
        "a note",
    ]


def test_what_is_kept_comes_back(tmp_path):
    path = tmp_path / "kept.json"
    report.save(path, MACHINE, [example()])
    assert report.load(path) == (MACHINE, [example()])
    kept = json.loads(path.read_text())
    assert [bar["met"] for bar in kept["tables"][0]["bars"]] == [True, None]


def test_machine_says_what_a_figure_needs():
    machine = report.machine("numpy", "no-such-package")
    assert list(machine["peers"]) == ["numpy"]
    described = report.describe(machine)
    for words in (machine["cpu"], np.__version__, machine["blas"], machine["kernels"], machine["sources"]):
        assert words in described


def test_the_digest_is_of_what_a_call_runs_through(tmp_path, monkeypatch):
    for name in ("__init__.py", "_plan.py", "_numpy/forward.py", "_tools.py", "_bench/seeds.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(cuflash, "__file__", str(tmp_path / "__init__.py"))
    before = report.sources_digest()
    for name in ("_tools.py", "_bench/seeds.py"):
        (tmp_path / name).write_text("x = 2\n")
    assert report.sources_digest() == before
    for name in ("_plan.py", "_numpy/forward.py"):
        (tmp_path / name).write_text("x = 2\n")
        assert report.sources_digest() != before
        (tmp_path / name).write_text("x = 1\n")


# the command


def test_command_prints_and_keeps_the_tables(instant, tmp_path, capsys):
    path = tmp_path / "tables.json"
    assert command_line.main(["bench", "--lengths", "16", "33", "--rounds", "1", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    machine, tables = report.load(path)
    assert report.describe(machine) in printed
    assert [[row["l"] for row in table.rows] for table in tables] == [[16, 33], [16, 33]]
    for table in tables:
        assert table.title in printed
        for name in table.rows[0]:
            assert all(word in printed for word in name.split())


@pytest.mark.parametrize(
    "arguments", [["--json", "no/such/folder/x.json"], ["--chart", "."], ["--chart", "x.doc"], ["--lengths", "x"]]
)
def test_command_refuses_before_it_measures(arguments, monkeypatch, capsys):
    monkeypatch.setattr(seeds, "tables", None)
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["bench", *arguments])
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_chart_without_matplotlib_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(seeds, "tables", None)
    monkeypatch.setattr(report, "installed", lambda name: name != "matplotlib")
    with pytest.raises(SystemExit):
        command_line.main(["bench", "--chart", str(tmp_path / "x.svg")])
    assert 'pip install "cuflash[bench]"' in capsys.readouterr().err


def test_chart_is_the_same_for_the_same_figures(instant, tmp_path):
    pytest.importorskip("matplotlib", reason="the chart needs matplotlib")
    from cuflash._bench import chart

    tables = seeds.tables([16, 24], rounds=1)
    report.save(tmp_path / "tables.json", MACHINE, tables)
    chart.draw(tmp_path / "one.svg", MACHINE, tables)
    chart.draw(tmp_path / "two.svg", *report.load(tmp_path / "tables.json"))
    drawn = (tmp_path / "one.svg").read_bytes()
    assert drawn == (tmp_path / "two.svg").read_bytes()
    assert b"<dc:date>" not in drawn
    for words in ("l = 16", "l = 24", MACHINE["cpu"], MACHINE["date"]):
        assert words.encode() in drawn
    chart.draw(tmp_path / "one.png", MACHINE, tables)
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
