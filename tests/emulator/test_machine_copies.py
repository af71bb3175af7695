"""cp.async on the machine: bytes land in the wait that must cover them, and belong to nobody until then."""

import numpy as np
import pytest

from emulator.small_kernels import every_schedule, fixtures, kernels

run, array = fixtures()

COPY = """
    u32 to = shared_base() + 16 * tid();
    cp_async(to, arrays[0] + 16 * tid(), 16, 16, AT(1));
    cp_async_commit(AT(2));
    cp_async(to + 1024, arrays[0] + 1024 + 16 * tid(), 16, 16, AT(3));
    cp_async_commit(AT(4));
    %(wait)s
    %(barrier)s
    u32 value[4];
    load_shared<16>(value, %(from)s, AT(8));
    store_global<16>(arrays[1] + 16 * tid(), value, AT(9));
    %(end)s
"""
OWN = {"wait": "cp_async_wait(1, AT(5));", "barrier": "", "from": "to", "end": "cp_async_wait(0, AT(10));"}
OTHERS = "shared_base() + 16 * (tid() ^ 33)"


@every_schedule
@kernels(
    own=COPY % OWN,
    others=COPY % (OWN | {"from": OTHERS, "barrier": "barrier_sync(0, 0, AT(6));"}),
    all=COPY % (OWN | {"from": "to + 1024", "wait": "cp_async_wait_all(AT(5));"}),
)
def test_copies_that_are_waited_for(run, array, schedule):
    source, out = array("source", 2048, np.arange(512, dtype="u4")), array("out", 1024)
    assert run("own", source, out, block=64, shared=2048, **schedule).report == ""
    np.testing.assert_array_equal(out.view(), np.arange(256))
    assert run("others", source, out, block=64, shared=2048, **schedule).report == ""
    np.testing.assert_array_equal(out.view().reshape(64, 4), np.arange(256).reshape(64, 4)[np.arange(64) ^ 33])
    outcome = run("all", source, out, block=64, shared=2048, **schedule)
    assert outcome.report == ""
    assert outcome.counters.copies == 128
    np.testing.assert_array_equal(out.view(), np.arange(256, 512))


@every_schedule
@pytest.mark.parametrize("shared_base", [0x400, 0x480])
@kernels(
    no_wait=COPY % (OWN | {"wait": ""}),
    wait_of_an_older_group=COPY % (OWN | {"from": "to + 1024"}),
    not_committed=COPY.replace("cp_async_commit(AT(4));", "")
    % (OWN | {"from": "to + 1024", "wait": "cp_async_wait(0, AT(5));", "end": "cp_async_wait_all(AT(10));"}),
)
def test_copies_read_before_they_land(run, array, shared_base, schedule):
    options = {"block": 64, "shared": 2048, "shared_base": shared_base, **schedule}
    source, out = array("source", 2048, np.arange(512, dtype="u4")), array("out", 1024)
    for name, line in (("no_wait", 1), ("wait_of_an_older_group", 3), ("not_committed", 3)):
        outcome = run(name, source, out, **options)
        assert outcome.kinds() == ["in-flight"], outcome.report
        assert "kernel.cu:8 block (0,0,0) thread" in outcome.report
        assert f"issued at kernel.cu:{line}, has not landed" in outcome.report
        assert (out.values == 0xFF).all()  # and what it reads is NaN


@kernels(
    early="""
        u32 value[4] = {1, 2, 3, 4};
        store_shared<16>(shared_base(), value, AT(1));
        cp_async(shared_base(), arrays[0], 16, 16, AT(2));
        load_shared<16>(value, shared_base(), AT(3));
        store_global<16>(arrays[1], value, AT(4));
        cp_async_wait_all(AT(5));
    """
)
def test_what_is_read_early_is_neither_the_old_nor_the_new(run, array):
    source, out = array("source", 16, np.zeros(4, "u4")), array("out", 16, np.zeros(4, "u4"))
    assert run("early", source, out, block=1, checks=0).report == ""
    assert (out.values == 0xFF).all()


@kernels(
    early="""
        cp_async(shared_base() + 16 * tid(), arrays[0], 16, 16, AT(1));
        u32 value[4];
        load_shared<16>(value, shared_base() + 16 * tid(), AT(2));
        store_global<16>(arrays[1] + 16 * tid(), value, AT(3));
        cp_async_wait_all(AT(4));
    """
)
def test_when_copies_land(run, array):
    """In their wait, when they are issued, or some so and some so; to the checker all are in flight until the wait."""
    source, out = array("source", 16, np.arange(4, dtype="u4")), array("out", 1024)
    landed = []
    for landing in range(3):
        assert set(run("early", source, out, block=64, landing=landing).kinds()) == {"in-flight"}
        assert run("early", source, out, block=64, landing=landing, checks=0).report == ""
        arrived = (out.view().reshape(64, 4) == np.arange(4)).all(axis=1)
        assert (out.view().reshape(64, 4)[~arrived] == 0xFFFFFFFF).all()
        landed.append(arrived.sum())
    assert landed[:2] == [0, 64]
    assert 16 < landed[2] < 48


@every_schedule
@kernels(race=COPY % (OWN | {"from": OTHERS}))
def test_a_wait_covers_the_own_copies_only(run, array, schedule):
    source, out = array("source", 2048, np.arange(512, dtype="u4")), array("out", 1024)
    outcome = run("race", source, out, block=64, shared=2048, **schedule)
    assert {"race"} <= set(outcome.kinds()) <= {"race", "in-flight", "uninitialised"}, outcome.report


@kernels(
    store="""
        cp_async(shared_base() + 16 * tid(), arrays[0] + 16 * tid(), 16, 16, AT(1));
        put(AT(2), 16 * tid() + 12, 1);
        cp_async_wait_all(AT(3));
    """,
    add="""
        cp_async(shared_base() + 16 * tid(), arrays[0] + 16 * tid(), 16, 16, AT(1));
        atomic<u32>(Op::add, Space::shared, shared_base() + 16 * tid(), 1, Order::relaxed, Scope::cta, AT(2));
        cp_async_wait_all(AT(3));
    """,
    copy="""
        cp_async(shared_base() + 16 * tid(), arrays[0] + 16 * tid(), 16, 16, AT(1));
        cp_async(shared_base() + 16 * tid() + 8, arrays[0] + 16 * tid(), 8, 8, AT(2));
        cp_async_wait_all(AT(3));
    """,
    still_read="""
        put(AT(1), 16 * tid(), 1);
        barrier_sync(0, 0, AT(2));
        get(AT(3), 16 * (tid() ^ 40));
        cp_async(shared_base() + 16 * tid(), arrays[0] + 16 * tid(), 16, 16, AT(4));
        cp_async_wait_all(AT(5));
    """,
)
def test_the_destination_is_in_use(run, array):
    source = array("source", 1024)
    for name in ("store", "add", "copy"):
        outcome = run(name, source, block=64)
        assert outcome.kinds() == ["in-flight"]
        assert "kernel.cu:2" in outcome.report
    outcome = run("still_read", source, block=64)
    assert set(outcome.kinds()) == {"race"}
    assert "kernel.cu:4 block (0,0,0) thread" in outcome.report
    assert "cp.async of 16 bytes at shared memory +" in outcome.report
    assert "which read it" in outcome.report


@kernels(
    copy="""
        if (block() == 0) put_to(AT(1), arrays[0] + 4 * tid(), 1);
        else cp_async(shared_base() + 4 * tid(), arrays[0] + 4 * tid(), 4, 4, AT(2));
        cp_async_wait_all(AT(3));
    """
)
def test_the_source_is_read(run, array):
    for block_order, line in ((0, 2), (1, 1)):
        outcome = run("copy", array("parts", 128, between_blocks=1), grid=2, block_order=block_order)
        assert outcome.kinds() == ["race"]
        assert f"kernel.cu:{line}" in outcome.report


@kernels(
    committed="cp_async(shared_base() + 16 * tid(), arrays[0], 16, 16, AT(1)); cp_async_commit(AT(2));",
    followed="cp_async(shared_base() + 16 * tid(), arrays[0], 16, 16, AT(1)); "
    "cp_async_commit(AT(2)); cp_async_commit(AT(3));",
    open="cp_async(shared_base() + 16 * tid(), arrays[0], 16, 16, AT(1));",
    empty="cp_async_commit(AT(1));",
)
def test_copies_that_nobody_waits_for(run, array):
    source = array("source", 16)
    for name in ("committed", "followed", "open"):
        outcome = run(name, source, block=48)
        assert outcome.kinds() == ["left-over"]
        assert "kernel.cu:1: block (0,0,0) threads 0-47 exit without a wait for their cp.async" in outcome.report
    assert run("empty", source).report == ""


@kernels(
    sizes="""
        u32 words[8] = {1, 1, 1, 1, 1, 1, 1, 1};
        store_shared<16>(shared_base(), words, AT(1));
        store_shared<16>(shared_base() + 16, words, AT(1));
        cp_async(shared_base(), arrays[0], 4, 3, AT(2));
        cp_async(shared_base() + 8, arrays[0], 8, 4, AT(3));
        cp_async(shared_base() + 16, arrays[0] + 1 - 1, 16, 9, AT(4));
        cp_async_wait_all(AT(5));
        load_shared<16>(words, shared_base(), AT(6));
        load_shared<16>(words + 4, shared_base() + 16, AT(7));
        store_global<16>(arrays[1], words, AT(8));
        store_global<16>(arrays[1] + 16, words + 4, AT(9));
    """,
    nothing_read="cp_async(shared_base(), arrays[0] + 1600, 16, 0, AT(1)); cp_async_wait_all(AT(2));",
    out_of_bounds="cp_async(shared_base(), arrays[0] + 16, 16, 12, AT(1)); cp_async_wait_all(AT(2));",
    out_of_shared="cp_async(shared_base() + 1024, arrays[0], 16, 12, AT(1)); cp_async_wait_all(AT(2));",
    misaligned="cp_async(shared_base() + 8, arrays[0], 16, 16, AT(1));",
    misaligned_source="cp_async(shared_base(), arrays[0] + 4, 16, 4, AT(1));",
    too_many_read="cp_async(shared_base(), arrays[0], 8, 9, AT(1));",
    size="cp_async(shared_base(), arrays[0], 2, 2, AT(1));",
)
def test_sizes_and_zero_fill(run, array):
    source, out = array("source", 27, np.full(27, 5, "u1")), array("out", 32)
    assert run("sizes", source, out, block=1).report == ""
    expected = [5] * 3 + [0] + [1] * 4 + [5] * 4 + [0] * 4 + [5] * 9 + [0] * 7
    words = [x if x != 1 else y for x, y in zip(expected, [1, 0, 0, 0] * 8, strict=True)]
    assert out.values.tolist() == words
    assert run("nothing_read", source, block=1).report == ""
    for name, kind in (
        ("out_of_bounds", "out-of-bounds"),
        ("out_of_shared", "out-of-bounds"),
        ("misaligned", "misaligned"),
        ("misaligned_source", "misaligned"),
        ("size", "refused"),
        ("too_many_read", "refused"),
    ):
        assert run(name, source, block=1).kinds() == [kind], name
