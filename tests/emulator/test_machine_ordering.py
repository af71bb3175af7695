"""Release and acquire between blocks that run together: tickets, turns, chains, locks, and each without its fence."""

import numpy as np
import pytest

from emulator.small_kernels import assert_finding, every_schedule, fixtures, kernels

run, array = fixtures()
RELAXED = "Order::relaxed, Scope::gpu"


# "The last block merges": each block stores its part, the one that comes last adds up all.
TICKET = """
    constexpr u32 BLOCKS = 5, THREADS = 64;
    u64 parts = arrays[0], ticket = arrays[1], sum = arrays[2];
    put_to(AT(1), parts + 4 * (block() * THREADS + tid()), 1000 * block() + tid());
    %(before)s
    if (tid() == 0) put(AT(4), 0, atomic<u32>(Op::add, Space::global, ticket, 1, %(order)s, AT(5)) + 1);
    %(after)s
    barrier_sync(0, 0, AT(7));
    if (get(AT(8), 0) != BLOCKS) return;
    u32 total = 0;
    for (u32 other = 0; other < BLOCKS; ++other) total += get_from(AT(9), parts + 4 * (other * THREADS + tid()));
    put_to(AT(10), sum + 4 * tid(), total);
"""
FENCE = "fence(Order::acq_rel, Scope::gpu, AT(%d));"
FENCED = {"before": "barrier_sync(0, 0, AT(2)); " + FENCE % 3, "order": RELAXED, "after": FENCE % 6}
WITHOUT = {"before": "barrier_sync(0, 0, AT(2));", "after": ""}


@every_schedule
@pytest.mark.parametrize("resident", [1, 2, 5])
@kernels(
    own_fences=TICKET % (FENCED | {"before": FENCE % 2 + "barrier_sync(0, 0, AT(3));"}),
    fences=TICKET % FENCED,
    acq_rel=TICKET % (WITHOUT | {"order": "Order::acq_rel, Scope::gpu"}),
    no_fence=TICKET % (FENCED | WITHOUT),
    no_release=TICKET % (FENCED | {"before": WITHOUT["before"]}),
    no_acquire=TICKET % (FENCED | {"after": ""}),
    release_alone=TICKET % (WITHOUT | {"order": "Order::release, Scope::gpu"}),
    cta_fences=TICKET % {name: text.replace("gpu, AT", "cta, AT") for name, text in FENCED.items()},
    no_barrier=TICKET % (FENCED | {"before": FENCE % 3}),
    early_fence=(TICKET % (FENCED | {"before": WITHOUT["before"]})).replace("put_to(AT(1)", FENCE % 1 + "put_to(AT(1)"),
)
def test_the_last_block_merges(run, array, resident, schedule):
    def launch(name):
        ticket = array("ticket", 4, np.zeros(1, "u4"), between_blocks=1)
        parts, total = array("parts", 4 * 5 * 64, between_blocks=1), array("sum", 4 * 64)
        outcome = run(name, parts, ticket, total, grid=5, block=64, resident_blocks=resident, **schedule)
        np.testing.assert_array_equal(total.view(), 10000 + 5 * np.arange(64))  # values do not show what is missing
        return outcome

    for name in ("fences", "acq_rel"):
        assert launch(name).report == "", name
    # Fences of all threads before the barrier do not do: what others store does not precede the fence of thread 0.
    for name in ("own_fences", "no_fence", "no_release", "release_alone", "cta_fences", "no_barrier", "early_fence"):
        assert_finding(launch(name), "race", "kernel.cu:9 block (", "a load of 4 bytes at 'parts' +", "stored it (byte")
    assert_finding(launch("no_acquire"), "race", "kernel.cu:9")


# "Additions in a fixed order": a block waits for its turn.
TURNS = """
    u64 sum = arrays[0], turn = arrays[1];
    u32 now = 0;
    if (tid() == 0) {
        do {
            load_strong<4>(Space::global, &now, turn, %(load)s, AT(1));
            step(AT(2));
        } while (now != block());
    }
    barrier_sync(0, 0, AT(3));
    put_to(AT(4), sum + 4 * tid(), get_from(AT(5), sum + 4 * tid()) * 3 + block());
    %(barrier)s
    now = block() + 1;
    if (tid() == 0) store_strong<4>(Space::global, turn, &now, %(store)s, AT(7));
"""
ORDERED = {
    "load": "Order::acquire, Scope::gpu",
    "store": "Order::release, Scope::gpu",
    "barrier": "barrier_sync(0, 0, AT(6));",
}


@every_schedule
@kernels(
    clean=TURNS % ORDERED,
    no_acquire=TURNS % (ORDERED | {"load": RELAXED}),
    no_release=TURNS % (ORDERED | {"store": RELAXED}),
    cta_scope=TURNS % (ORDERED | {"store": "Order::release, Scope::cta"}),
    no_barrier=TURNS % (ORDERED | {"barrier": ""}),
)
def test_additions_in_a_fixed_order(run, array, schedule):
    def launch(name, resident=6):
        turn = array("turn", 4, np.zeros(1, "u4"), between_blocks=1)
        total = array("sum", 4 * 64, np.zeros(64, "u4"), between_blocks=1)
        return run(name, total, turn, grid=6, block=64, resident_blocks=resident, **schedule), total.view()

    outcome, total = launch("clean")
    assert outcome.report == ""
    assert (total == 0 * 243 + 1 * 81 + 2 * 27 + 3 * 9 + 4 * 3 + 5).all()
    for name in ("no_acquire", "no_release", "no_barrier"):
        assert_finding(launch(name)[0], "race", "at 'sum' +")
    assert_finding(launch("cta_scope")[0], "race", "one of the two with cta scope")
    if schedule["block_order"] == 1:  # what the resident blocks wait for never becomes resident
        outcome, _ = launch("clean", resident=2)
        assert_finding(outcome, "deadlock", "block (5,0,0) threads 0 wait at kernel.cu:1 (repeats a read of 4 bytes",
                       "block (4,0,0) threads 1-31 wait at kernel.cu:3 bar.sync for lanes 0 of warp 0",
                           "block (4,0,0) threads 32-63 wait at kernel.cu:3 barrier 0: 1 of 2 warps")  # fmt: skip


# From block to block: each stores a part, and hands its turn on through a word that nobody checks for races.
CHAIN = """
    u32 now = 0;
    put_to(AT(1), arrays[0] + 4 * block(), block() + 1);
    %(before)s
    do {
        load_strong<4>(Space::global, &now, arrays[1], %(load)s, AT(2));
        step(AT(3));
    } while (now != block());
    %(after)s
    now = block() + 1;
    store_strong<4>(Space::global, arrays[1], &now, %(store)s, AT(4));
    for (u32 other = 0; other < block(); ++other) get_from(AT(5), arrays[0] + 4 * other);
"""
HANDED = {"load": "Order::acquire, Scope::gpu", "store": "Order::release, Scope::gpu", "before": "", "after": ""}
FENCES = {"load": RELAXED, "store": RELAXED, "after": FENCE % 6}
CTA_FENCE = "fence(Order::acq_rel, Scope::cta, AT(7));"


@every_schedule
@kernels(
    clean=CHAIN % HANDED,
    fences=CHAIN % (HANDED | FENCES),
    cta_release=CHAIN % (HANDED | {"store": "Order::release, Scope::cta"}),
    cta_acquire=CHAIN % (HANDED | {"load": "Order::acquire, Scope::cta"}),
    cta_release_fence=CHAIN % (HANDED | {"store": RELAXED, "after": CTA_FENCE}),
    cta_acquire_fence=CHAIN % (HANDED | {"load": RELAXED, "after": CTA_FENCE}),
)
def test_what_was_acquired_is_released_again(run, array, schedule):
    def launch(name):
        parts, turn = array("parts", 24, between_blocks=1), array("turn", 4, np.zeros(1, "u4"))
        return run(name, parts, turn, grid=6, block=1, resident_blocks=6, **schedule)

    for name in ("clean", "fences"):
        assert launch(name).report == "", name
    for name in ("cta_release", "cta_acquire", "cta_release_fence", "cta_acquire_fence"):
        assert_finding(launch(name), "race", "kernel.cu:5")


LAST_RELEASE = """
    u32 one = 1;
    if (block() == 0 && tid() == 0) {
        put_to(AT(1), arrays[0], 5);
        %s
    } else if (block() == 0) {
        %s
    } else if (tid() == 0) {
        load_strong<4>(Space::global, &one, arrays[1], Order::acquire, Scope::gpu, AT(3));
        get_from(AT(4), arrays[0]);
    }
"""
SWAP = "atomic_cas<u32>(Space::global, arrays[1], %d, 1, Order::acq_rel, Scope::gpu, AT(2));"
ADD = "atomic<u32>(Op::add, Space::global, arrays[1], 1, Order::relaxed, Scope::gpu, AT(5));"
OVERWRITE = "store_strong<4>(Space::global, arrays[1], &one, Order::relaxed, Scope::gpu, AT(2));"


@kernels(
    swapped=LAST_RELEASE % (SWAP % 0, ""),
    not_swapped=LAST_RELEASE % (SWAP % 7, ""),
    added=LAST_RELEASE % (SWAP % 0, ADD),
    stored_again=LAST_RELEASE % (SWAP % 0 + OVERWRITE, ""),
    overwritten=LAST_RELEASE % (SWAP % 0, OVERWRITE),
)
def test_who_reads_a_release(run, array):
    data, flag = array("data", 4, between_blocks=1), array("flag", 4, between_blocks=1)
    for name in ("swapped", "not_swapped", "added", "stored_again", "overwritten"):
        flag.values[...] = 0
        outcome = run(name, data, flag, grid=2, block=2)
        if name in ("swapped", "added", "stored_again"):  # updates by others and own stores keep what was released
            assert outcome.report == "", name
        else:
            assert_finding(outcome, "race", "kernel.cu:4")


LOCK = """
    u64 lock = arrays[0], count = arrays[1];
    if (tid() %% 32 == 0) {
        while (%(take)s) step(AT(2));
        %(acquire)s
        put_to(AT(3), count, get_from(AT(4), count) + 1);
        %(release)s
        %(give)s;
    }
"""
LOCKED = {
    "take": f"atomic_cas<u32>(Space::global, lock, 0, 1, {RELAXED}, AT(1))",
    "acquire": FENCE % 5,
    "release": FENCE % 6,
    "give": f"atomic<u32>(Op::exch, Space::global, lock, 0, {RELAXED}, AT(7))",
}


@every_schedule
@kernels(
    clean=LOCK % LOCKED,
    exchanged=LOCK % (LOCKED | {"take": f"atomic<u32>(Op::exch, Space::global, lock, 1, {RELAXED}, AT(1))"}),
    no_acquire=LOCK % (LOCKED | {"acquire": ""}),
    no_release=LOCK % (LOCKED | {"release": ""}),
    not_given_back=LOCK % (LOCKED | {"give": ""}),
)
def test_a_lock_between_threads_and_blocks(run, array, schedule):
    def launch(name):
        lock = array("lock", 4, np.zeros(1, "u4"), between_blocks=1)
        count = array("count", 4, np.zeros(1, "u4"), between_blocks=1)
        return run(name, lock, count, grid=3, block=96, resident_blocks=3, **schedule), count.view()[0]

    for name in ("clean", "exchanged"):
        outcome, count = launch(name)
        assert (outcome.report, count) == ("", 9)
    assert_finding(launch("no_acquire")[0], "race", "'count' + 0")
    assert_finding(launch("no_release")[0], "race", "'count' + 0")
    assert_finding(launch("not_given_back")[0], "deadlock", "kernel.cu:1 (repeats a read")


@kernels(
    counts="u32 seen; for (u32 i = 0; i < 1000; ++i) load_strong<4>(Space::global, &seen, arrays[0], "
    f"{RELAXED}, AT(1)); put_to(AT(2), arrays[1] + 4 * tid(), seen);"
)
def test_a_loop_that_only_counts_is_no_deadlock(run, array):
    out = array("out", 128)
    assert run("counts", array("flag", 4, np.full(1, 3, "u4")), out).report == ""
    assert (out.view() == 3).all()
