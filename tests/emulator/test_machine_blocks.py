"""Blocks of one launch: races between them, what atomics compute, and that every schedule replays bit for bit."""

import itertools

import numpy as np

from emulator.small_kernels import assert_clean, assert_finding, every_schedule, fixtures, kernels

run, array = fixtures()
RELAXED = "Order::relaxed, Scope::gpu"


RACES = ("race", "two_writers", "late_write", "same_half", "plain_and_atomic", "store_and_atomic", "scopes")


@every_schedule
@kernels(
    race="if (block()) put_to(AT(1), arrays[0] + 4 * tid(), 1); else get_from(AT(2), arrays[0] + 4 * (tid() ^ 1));",
    two_writers="put_to(AT(1), arrays[0] + 4 * (tid() & ~block()), 1);",
    late_write="get_from(AT(1), arrays[0] + 4 * tid()); if (block()) put_to(AT(2), arrays[0] + 4 * tid(), 1);",
    halves="uint16_t value = 1; store_global<2>(arrays[0] + 2 * (2 * tid() + block()), &value, AT(1));",
    same_half="uint16_t value = 1; store_global<2>(arrays[0] + 4 * tid(), &value, AT(1));",
    readers="get_from(AT(1), arrays[0] + 4 * tid());",
    strong_readers="u32 value; if (block()) get_from(AT(1), arrays[0]); "
    f"else load_strong<4>(Space::global, &value, arrays[0], {RELAXED}, AT(2));",
    atomics=f"atomic<u32>(Op::add, Space::global, arrays[0], 1, {RELAXED}, AT(1));",
    plain_and_atomic=f"if (block()) get_from(AT(2), arrays[0]); else atomic<u32>(Op::add, Space::global, arrays[0], 1, "
    f"{RELAXED}, AT(1));",
    store_and_atomic="if (block() && !tid()) put_to(AT(2), arrays[0], 1); "
    f"if (!block()) atomic<u32>(Op::add, Space::global, arrays[0], 1, {RELAXED}, AT(1));",
    scopes="atomic<u32>(Op::add, Space::global, arrays[0], 1, Order::relaxed, Scope::cta, AT(1));",
)
def test_races_between_blocks(run, array, schedule):
    for resident in (1, 2):
        for name in (*RACES, "halves", "readers", "strong_readers", "atomics"):
            parts = array("parts", 128, np.zeros(32, "u4"), between_blocks=1)
            outcome = run(name, parts, grid=2, resident_blocks=resident, **schedule)
            if name in RACES:
                assert_finding(outcome, "race", "'parts' +", ") thread")
            else:
                assert outcome.report == "", name
            quiet = array("unchecked", 128, np.zeros(32, "u4"))
            assert run(name, quiet, grid=2, resident_blocks=resident, **schedule).report == ""


@kernels(
    integers="""
        Op ops[] = {Op::add, Op::min, Op::max, Op::inc, Op::dec, Op::exch, Op::and_, Op::or_, Op::xor_};
        for (u32 i = 0; i < 9; ++i) {
            u64 u = arrays[0] + 8 * i, s = arrays[1] + 8 * i;
            atomic<u32>(ops[i], Space::global, arrays[2] + 4 * i, 0xfffffff0, Order::relaxed, Scope::gpu, AT(1));
            atomic<int32_t>(ops[i], Space::generic, arrays[3] + 4 * i, -16, Order::relaxed, Scope::gpu, AT(2));
            atomic<u64>(ops[i], Space::global, u, 1ull << 40, Order::relaxed, Scope::sys, AT(3));
            atomic<int64_t>(ops[i], Space::global, s, -(1ll << 40), Order::relaxed, Scope::gpu, AT(4));
        }
    """,
    wraps="""
        for (u32 i = 0; i < 5; ++i) {
            atomic<u32>(Op::inc, Space::global, arrays[0], 2, Order::relaxed, Scope::gpu, AT(1));
            u32 old = atomic<u32>(Op::dec, Space::global, arrays[0] + 4, 2, Order::relaxed, Scope::gpu, AT(1));
            put_to(AT(2), arrays[1] + 4 * i, old);
        }
        for (u32 i = 0; i < 2; ++i) {
            u32 old = atomic_cas<u32>(Space::global, arrays[0] + 8, 4, 9 - i, Order::relaxed, Scope::gpu, AT(3));
            put_to(AT(4), arrays[1] + 20 + 4 * i, old);
        }
    """,
    reals="""
        float tiny = 1e-40f, normal = 1.5f;
        put(AT(1), 0, 0);
        u64 shared = shared_to_generic(shared_base());
        atomic<float>(Op::add, Space::generic, shared, tiny, Order::relaxed, Scope::cta, AT(2));
        put_to(AT(3), arrays[0], get(AT(4), 0));
        atomic<float>(Op::add, Space::global, arrays[0] + 4, tiny, Order::relaxed, Scope::gpu, AT(5));
        atomic<float>(Op::add, Space::global, arrays[0] + 8, normal, Order::relaxed, Scope::gpu, AT(5));
        atomic<double>(Op::add, Space::global, arrays[1], 1e-310, Order::relaxed, Scope::gpu, AT(6));
    """,
    refused="atomic<float>(Op::max, Space::global, arrays[0], 1, Order::relaxed, Scope::gpu, AT(1));",
    misaligned="atomic<u64>(Op::add, Space::global, arrays[0] + 4, 1, Order::relaxed, Scope::gpu, AT(1));",
)
def test_what_atomics_compute(run, array):
    start = np.full(9, 20)
    large, minus = 1 << 40, 2**32 - 16
    unsigned = [4, 20, minus, 21, 19, minus, 20 & minus, 20 | minus, 20 ^ minus]
    signed = [4, -16, 20, 0, -16, -16, 20 & -16, 20 | -16, 20 ^ -16]
    wide = [20 + large, 20, large, 21, 19, large, 20 & large, 20 | large, 20 ^ large]
    wide_signed = [20 - large, -large, 20, 0, -large, -large, 20 & -large, 20 | -large, 20 ^ -large]
    arrays = [
        (dtype, array(dtype, start.astype(dtype).nbytes, start.astype(dtype))) for dtype in ("u8", "i8", "u4", "i4")
    ]
    assert run("integers", *(one for _, one in arrays), block=1).report == ""
    for one, expected in zip(arrays, (wide, wide_signed, unsigned, signed), strict=True):
        assert one[1].view(one[0]).tolist() == expected, one[0]
    counters, out = array("counters", 12, np.array([0, 1, 4], "u4")), array("out", 28)
    assert run("wraps", counters, out, block=1).report == ""
    assert counters.view().tolist() == [2, 2, 9]
    assert out.view().tolist() == [1, 0, 2, 1, 0, 4, 9]
    reals, doubles = array("f32", 12, np.array([0, 0, 2.5], "f4")), array("f64", 8, np.zeros(1))
    assert run("reals", reals, doubles, block=1).report == ""
    assert reals.view("float32").tolist() == [np.float32(1e-40), 0, 4]  # global additions flush subnormal numbers
    assert doubles.view("float64") == 1e-310
    assert_finding(run("refused", reals, block=1), "refused")
    assert_finding(run("misaligned", reals, block=1), "misaligned")


MIXTURE = """
    u32 value = tid();
    for (u32 i = 0; i < 6; ++i) {
        u32 ticket = atomic<u32>(Op::add, Space::global, arrays[0], 1, Order::acq_rel, Scope::gpu, AT(1));
        put_to(AT(2), arrays[1] + 4 * ticket, block() << 16 | tid() << 4 | i);
        value += shfl(Shuffle::bfly, value, 1 << i % 5, 31, ALL, nullptr, AT(3));
        barrier_sync(0, 0, AT(4));
        if (i == 3) get(AT(5), 4 * (tid() ^ 1));
        put(AT(6), 4 * tid(), value);
    }
"""


@kernels(mixture=MIXTURE)
def test_every_schedule_replays_bit_for_bit(run, array):
    seen = set()
    for thread_order, block_order, resident, seed in itertools.product((0, 1, 2), (0, 1, 2), (1, 3), (5, 6)):
        outcomes = []
        for _ in range(2):
            order = array("order", 4 * 6 * 64 * 5)
            outcome = run("mixture", array("next", 4, np.zeros(1, "u4")), order, grid=5, block=64, seed=seed,
                          schedule=thread_order, block_order=block_order, resident_blocks=resident)  # fmt: skip
            assert set(outcome.kinds()) == {"race"}
            outcomes.append((outcome.report, outcome.findings, bytes(outcome.counters), order.values.tobytes()))
        assert outcomes[0] == outcomes[1]
        seen.add(outcomes[0][-1])
    # Seeds matter where something is random: 2 x 2 schedules without, 5 pairs of orders with, each for two residencies.
    assert len(seen) == 2 * (2 * 2 + 2 * 5)


@kernels(
    three="for (u32 i = 0; i < 3; ++i) { "
    f"u32 ticket = atomic<u32>(Op::add, Space::global, arrays[0], 1, {RELAXED}, AT(1)); "
    "put_to(AT(2), arrays[1] + 4 * ticket, block()); }"
)
def test_resident_blocks_take_turns_at_atomics(run, array):
    for resident, expected in ((1, [0, 0, 0, 1, 1, 1]), (2, [0, 1, 0, 1, 0, 1])):
        order = array("order", 4 * 6)
        outcome = run("three", array("next", 4, np.zeros(1, "u4")), order, grid=2, block=1, resident_blocks=resident)
        assert_clean(outcome)
        assert order.view().tolist() == expected


@kernels(
    order=f"u32 ticket = atomic<u32>(Op::add, Space::global, arrays[0], 1, {RELAXED}, AT(1)); "
    "put_to(AT(2), arrays[1] + 4 * ticket, tid());",
    sleepers="if (tid() % 2 == 0) nanosleep(AT(1)); else if (tid() % 4 == 1) return; "
    f"u32 ticket = atomic<u32>(Op::add, Space::global, arrays[0], 1, {RELAXED}, AT(2)); "
    "put_to(AT(3), arrays[1] + 4 * ticket, tid());",
)
def test_threads_run_in_their_order(run, array):
    orders = []
    for schedule, seed in ((0, 0), (1, 0), (2, 1), (2, 2)):
        order = array("order", 4 * 96)
        outcome = run("order", array("next", 4, np.zeros(1, "u4")), order, block=96, schedule=schedule, seed=seed)
        assert outcome.report == ""
        orders.append(order.view().tolist())
    assert orders[0] == list(range(96))
    assert orders[1] == orders[0][::-1]
    assert sorted(orders[2]) == sorted(orders[3]) == orders[0]
    assert len(set(map(tuple, orders))) == 4
    for schedule, expected in ((0, [3, 7, 11, 0, 2, 4, 6, 8, 10]), (1, [11, 7, 3, 10, 8, 6, 4, 2, 0])):
        order = array("order", 4 * 9)
        assert run("sleepers", array("next", 4, np.zeros(1, "u4")), order, block=12, schedule=schedule).report == ""
        assert order.view().tolist() == expected


@kernels(order="put_to(AT(1), arrays[1] + 4 * atomic<u32>(Op::add, Space::global, arrays[0], 1, "
         f"{RELAXED}, AT(2)), block());")  # fmt: skip
def test_blocks_start_in_their_order(run, array):
    orders = []
    for block_order, seed in ((0, 0), (1, 0), (2, 1), (2, 2)):
        order = array("order", 4 * 20)
        count = array("count", 4, np.zeros(1, "u4"))
        assert run("order", count, order, grid=20, block=1, block_order=block_order, seed=seed).report == ""
        orders.append(order.view().tolist())
    assert orders[0] == list(range(20))
    assert orders[1] == orders[0][::-1]
    assert sorted(orders[2]) == sorted(orders[3]) == orders[0]
    assert len(set(map(tuple, orders))) == 4
