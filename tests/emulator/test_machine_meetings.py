"""Warp collectives and barriers of the machine: what they compute, and what they find when threads do not meet."""

import numpy as np
import pytest

from emulator.small_kernels import assert_finding, every_schedule, fixtures, kernels

run, array = fixtures()
ALL = 0xFFFFFFFF


def shuffled(mode, values, delta, width):
    """CUDA's `__shfl_*_sync(mask, value, delta, width)`: lanes of a segment of `width`, out of range keeps its own."""
    result, in_range = values.copy(), np.ones(32, bool)
    for lane in range(32):
        first = lane // width * width
        source = {"up": lane - delta, "down": lane + delta, "bfly": lane ^ delta, "idx": first + delta % width}[mode]
        if mode == "bfly":  # reads earlier segments, but none beyond its own
            in_range[lane] = source < first + width
        else:
            in_range[lane] = first <= source < first + width
        if in_range[lane]:
            result[lane] = values[source]
    return result, in_range


@every_schedule
@pytest.mark.parametrize("width", [32, 16, 4, 1])
@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@kernels(
    shuffle="""
        auto options = (const u32*)arrays[0];
        bool p;
        u32 d = shfl((Shuffle)options[0], 100 + tid(), options[1], options[2], ALL, &p, AT(1));
        put_to(AT(2), arrays[1] + 8 * tid(), d);
        put_to(AT(2), arrays[1] + 8 * tid() + 4, p);
    """
)
def test_shuffles(run, array, mode, width, schedule):
    out = array("out", 8 * 32)
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    for delta in (0, 1, 3, 8, 16, 31):
        options = array("options", 12, np.array([("up", "down", "bfly", "idx").index(mode), delta, clamp], np.uint32))
        assert run("shuffle", options, out, **schedule).report == ""
        expected, in_range = shuffled(mode, np.arange(100, 132), delta, width)
        np.testing.assert_array_equal(out.view().reshape(32, 2), np.stack([expected, in_range], 1))


@every_schedule
@kernels(
    votes="""
        auto value = ((const u32*)arrays[0])[tid()];
        u32 lane = tid(), mask = lane < 20 ? 0xfffff : 0xfff00000;
        bool all_equal;
        u32 found[] = {
            vote_all(value & 1, mask, AT(1)), vote_any(value & 1, mask, AT(2)), vote_uni(value & 1, mask, AT(3)),
            ballot(value & 1, mask, AT(4)), match_any(value, mask, AT(5)), match_all(value, mask, &all_equal, AT(6)),
            all_equal,
            redux(Op::add, value, mask, AT(7)), redux(Op::and_, value, mask, AT(8)), redux(Op::or_, value, mask, AT(9)),
            redux(Op::xor_, value, mask, AT(10)),
            redux(Op::min, value, mask, AT(11)), redux(Op::max, value, mask, AT(12)),
            (u32)redux_signed(Op::min, value, mask, AT(13)), (u32)redux_signed(Op::max, value, mask, AT(14)),
        };
        for (u32 i = 0; i < 15; ++i) put_to(AT(15), arrays[1] + 4 * (15 * lane + i), found[i]);
    """
)
def test_votes_and_reductions(run, array, schedule):
    rng = np.random.default_rng(1)
    out = array("out", 4 * 15 * 32)
    for values in (rng.integers(0, 3, 32), rng.integers(0, 1 << 32, 32), np.full(32, 7), np.arange(32) // 20 * 3):
        values = values.astype(np.uint32)
        assert run("votes", array("values", 128, values), out, **schedule).report == ""
        for lane, found in enumerate(out.view().reshape(32, 15).tolist()):
            lanes = np.arange(20) if lane < 20 else np.arange(20, 32)
            part, odd, mask = values[lanes], values[lanes] & 1, int((1 << lanes).sum())
            equal = len(set(part.tolist())) == 1
            signed = part.view(np.int32)
            expected = [odd.all(), odd.any(), odd.all() or not odd.any(), (odd.astype(int) << lanes).sum(),
                        (1 << lanes[part == values[lane]]).sum(), mask * equal, equal, part.sum(dtype=np.uint32),
                        np.bitwise_and.reduce(part), np.bitwise_or.reduce(part), np.bitwise_xor.reduce(part),
                        part.min(), part.max(), signed.min().view(np.uint32), signed.max().view(np.uint32)]  # fmt: skip
            assert found == [int(x) for x in expected], lane


@every_schedule
@kernels(
    inner="""
        u32 sum = tid();
        if (tid() % 32 < 16) sum += shfl(Shuffle::bfly, sum, 1, 31, 0xffff, nullptr, AT(1));
        sum += shfl(Shuffle::bfly, sum, 16, 31, ALL, nullptr, AT(2));
        put_to(AT(3), arrays[0] + 4 * tid(), sum);
    """,
    partial="put_to(AT(2), arrays[0] + 4 * tid(), ballot(true, ALL, AT(1)));",
)
def test_meetings_of_some_lanes(run, array, schedule):
    out = array("out", 4 * 64)
    assert run("inner", out, block=32, **schedule).report == ""
    lane = np.arange(32)
    first = np.where(lane < 16, lane + (lane ^ 1), lane)
    np.testing.assert_array_equal(out.view()[:32], first + first[lane ^ 16])
    assert run("partial", out, block=40, **schedule).report == ""  # the last warp has 8 lanes
    assert out.view()[:40].tolist() == [ALL] * 32 + [0xFF] * 8


@kernels(
    sites="if (tid() & 1) ballot(true, ALL, AT(1)); else ballot(true, ALL, AT(2));",
    kinds="if (tid() & 1) ballot(true, ALL, AT(1)); else syncwarp(ALL, AT(2));",
    not_in_mask="syncwarp(0xffff, AT(1));",
    source_absent="if (tid() < 16) shfl(Shuffle::idx, 0, 20, 31, 0xffff, nullptr, AT(1));",
    first_exits="if (tid() == 0) return; ballot(true, ALL, AT(1));",
    last_exits="if (tid() == 31) return; ballot(true, ALL, AT(1));",
    never="if (tid() == 5) syncwarp(0x60, AT(2)); ballot(true, ALL, AT(1));",
)
def test_lanes_that_do_not_meet(run):
    for schedule in (0, 1):
        coming, waiting, line = (1, 0, 2) if schedule == 0 else (30, 31, 1)
        there = f"while lanes {waiting} of its warp wait in vote.ballot at kernel.cu:{line}"
        outcome = run("sites", schedule=schedule)
        assert_finding(outcome, "divergence", f"lane {coming} executes vote.ballot here {there}")
        assert_finding(run("kinds", schedule=schedule), "divergence", "bar.warp.sync")
        assert_finding(run("not_in_mask", schedule=schedule), "divergence", "in which its own lane")
        outcome = run("source_absent", schedule=schedule)
        assert_finding(outcome, "divergence", "reads lane 20, which takes no part")
        gone, late = ("first_exits", "last_exits") if schedule == 0 else ("last_exits", "first_exits")
        assert_finding(run(gone, schedule=schedule), "divergence", "vote.ballot names lanes", ", which have exited")
        assert_finding(run(late, schedule=schedule), "divergence", "exits while lanes", "wait for it in vote.ballot")
        outcome = run("never", block=64, schedule=schedule)
        assert_finding(outcome, "deadlock", "threads 0-4, 6-31 wait at kernel.cu:1 vote.ballot for lanes 5 of warp 0",
                       "threads 5 wait at kernel.cu:2 bar.warp.sync for lanes 6 of warp 0")  # fmt: skip


BARRIER = """
    for (u32 step = 0; step < 5; ++step) {
        if (tid() == step * 20) put_to(AT(1), arrays[0] + 4 * step, step + 1);
        barrier_sync(0, 0, AT(2));
        if (get_from(AT(3), arrays[0] + 4 * step) == step + 1) put_to(AT(4), arrays[1] + 4 * (128 * step + tid()), 1);
    }
"""


@every_schedule
@kernels(
    steps=BARRIER,
    reduce="""
        bool value = tid() %% 3 == 0 && tid() < ((const u32*)arrays[0])[0];
        put_to(AT(1), arrays[1] + 12 * tid(), barrier_red(Reduce::popc, 3, 0, value, AT(2)));
        put_to(AT(1), arrays[1] + 12 * tid() + 4, barrier_red(Reduce::and_, 3, 96, value, AT(3)));
        put_to(AT(1), arrays[1] + 12 * tid() + 8, barrier_red(Reduce::or_, 3, 96, value, AT(4)));
    """.replace("%%", "%"),
)
def test_barriers(run, array, schedule):
    flags, seen = array("flags", 20, np.zeros(20, "u1")), array("seen", 5 * 512, np.zeros(5 * 512, "u1"))
    outcome = run("steps", flags, seen, block=128, **schedule)
    assert outcome.report == ""
    assert seen.view().all()
    assert outcome.counters.barriers == 5
    votes = array("votes", 12 * 96)
    for limit, popc in ((96, 32), (1, 1), (0, 0)):
        assert run("reduce", array("limit", 4, np.array([limit], "u4")), votes, block=96, **schedule).report == ""
        assert set(map(tuple, votes.view().reshape(96, 3).tolist())) == {(popc, 0, int(popc > 0))}


@kernels(
    id="barrier_sync(16, 0, AT(1));",
    count="barrier_sync(1, 48, AT(1));",
    too_many="barrier_sync(1, 128, AT(1));",
    counts="if (tid() < 32) barrier_sync(1, 64, AT(1)); else barrier_sync(1, 32, AT(2));",
    lanes_differ="barrier_sync(tid() % 2 + 1, 0, AT(1));",
    divergent="if (tid() < 16) barrier_sync(0, 0, AT(1)); else barrier_sync(0, 0, AT(2));",
    warps_apart="if (tid() < 32) barrier_sync(0, 0, AT(1)); else barrier_sync(0, 0, AT(2));",
    stray="if (tid() < 32) barrier_arrive(4, 64, AT(1));",
)
def test_misuse_of_barriers(run):
    for schedule in (0, 1, 2):
        assert_finding(run("id", schedule=schedule), "barrier", "kernel.cu:1", "there are barriers 0 to 15")
        assert_finding(run("count", block=64, schedule=schedule), "barrier", "a multiple of 32")
        assert_finding(run("too_many", block=64, schedule=schedule), "barrier", "at most the block's 64")
        assert_finding(run("divergent", schedule=schedule), "divergence", "bar.sync")
        assert run("warps_apart", block=64, schedule=schedule).report == ""
        outcome = run("stray", block=64, schedule=schedule)
        assert_finding(outcome, "left-over", "1 arrivals at barrier 4, which waits for 2")
    assert_finding(run("counts", block=64), "barrier", "used here for 32 threads, by others of the same phase for 64")
    assert_finding(run("lanes_differ", block=64), "barrier", "another lane of its warp barrier 1 of 64 threads")


@kernels(
    exited="if (tid() >= 96) return; barrier_sync(0, 0, AT(7));",
    crossed="if (tid() < 32) barrier_sync(1, 64, AT(1)); else barrier_sync(2, 64, AT(2));",
    lane="if (tid() == 33) syncwarp(ALL, AT(3)); barrier_sync(0, 0, AT(4));",
)
def test_a_deadlock_says_who_waits_where_for_what(run):
    for schedule in (0, 1, 2):
        outcome = run("exited", block=128, grid=2, schedule=schedule)
        assert_finding(outcome, "deadlock", "threads 0-95 wait at kernel.cu:7 barrier 0: 3 of 4 warps have arrived",
                       "threads 96-127 have exited")  # fmt: skip
        outcome = run("crossed", block=64, schedule=schedule)
        assert_finding(outcome, "deadlock", "threads 0-31 wait at kernel.cu:1 barrier 1: 1 of 2 warps have arrived",
                       "threads 32-63 wait at kernel.cu:2 barrier 2: 1 of 2 warps have arrived")  # fmt: skip
        assert run("lane", block=64, schedule=schedule).kinds() == ["divergence"]
