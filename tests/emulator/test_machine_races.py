"""The happens-before checker on shared memory: each race is found, and its corrected twin is clean."""

from emulator.small_kernels import assert_clean, assert_finding, every_schedule, fixtures, kernels

run, array = fixtures()


@every_schedule
@kernels(
    race="""
        put(AT(1), 4 * tid(), tid());
        get(AT(2), 4 * (tid() ^ 1));
    """,
    clean="""
        put(AT(1), 4 * tid(), tid());
        barrier_sync(0, 0, AT(3));
        get(AT(2), 4 * (tid() ^ 1));
    """,
)
def test_read_after_write(run, schedule):
    # A thread either reads what nobody has written yet, or what another has written.
    outcome = run("race", block=128, **schedule)
    assert set(outcome.kinds()) == {"race", "uninitialised"}, outcome.report
    assert "stored it (byte" in outcome.report
    assert " at kernel.cu:1" in outcome.report
    assert "kernel.cu:2 block (0,0,0) thread" in outcome.report
    assert_clean(run("clean", block=128, **schedule))


@every_schedule
@kernels(
    race="put(AT(1), 4 * (tid() / 2), 7);",
    clean="put(AT(1), 4 * tid(), 7);",
)
def test_write_after_write(run, schedule):
    assert_finding(run("race", block=64, **schedule), "race", "a store of 4 bytes at shared memory +", "stored it")
    assert_clean(run("clean", block=64, **schedule))


LOOP = """
    for (u32 step = 0; step < 4; ++step) {
        put(AT(1), 4 * tid(), step);
        barrier_sync(0, 0, AT(2));
        get(AT(3), 4 * (127 - tid()));
        %s
    }
"""


@every_schedule
@kernels(race=LOOP % "", clean=LOOP % "barrier_sync(0, 0, AT(4));")
def test_write_after_read(run, schedule):
    # The missing second barrier never shows in the values of a fair schedule.
    assert_finding(run("race", block=128, **schedule), "race", "kernel.cu:1", "read it", "at kernel.cu:3")
    assert_clean(run("clean", block=128, **schedule))


DOUBLE_BUFFER = """
    for (u32 step = 0; step < 4; ++step) {
        put(AT(1), 512 * (step %% %d) + 4 * tid(), step);
        barrier_sync(0, 0, AT(2));
        get(AT(3), 512 * (step %% %d) + 4 * (127 - tid()));
    }
"""


@kernels(race=DOUBLE_BUFFER % (1, 1), clean=DOUBLE_BUFFER % (2, 2))
def test_two_buffers_need_one_barrier_a_step(run):
    assert_finding(run("race", block=128), "race")
    assert_clean(run("clean", block=128))


WARP_EXCHANGE = """
    for (u32 step = 0; step < 3; ++step) {
        put(AT(1), 4 * tid(), step);
        %s
        get(AT(3), 4 * (tid() ^ 5));
        %s
    }
"""


@every_schedule
@kernels(
    shuffles=WARP_EXCHANGE % (("shfl(Shuffle::bfly, 0, 1, 31, ALL, nullptr, AT(2));",) * 2),
    one_missing=WARP_EXCHANGE % ("syncwarp(ALL, AT(2));", ""),
    early="""
        put(AT(1), 4 * tid(), 1);
        syncwarp(ALL, AT(2));
        put(AT(3), 4 * tid(), 2);
        get(AT(4), 4 * (tid() ^ 1));
    """,
    clean=WARP_EXCHANGE % ("syncwarp(ALL, AT(2));", "syncwarp(ALL, AT(4));"),
)
def test_lanes_run_apart_and_only_syncwarp_orders_memory(run, schedule):
    assert_finding(run("shuffles", block=64, **schedule), "race")
    assert_finding(run("one_missing", block=64, **schedule), "race", "read it")
    assert_finding(run("early", block=32, **schedule), "race", "stored it")
    assert_clean(run("clean", block=64, **schedule))


@kernels(
    other_half="""
        put(AT(1), 4 * tid(), 1);
        syncwarp(tid() % 32 < 16 ? 0xffff : 0xffff0000, AT(2));
        get(AT(3), 4 * (tid() ^ 16));
    """,
    own_half="""
        put(AT(1), 4 * tid(), 1);
        syncwarp(tid() % 32 < 16 ? 0xffff : 0xffff0000, AT(2));
        get(AT(3), 4 * (tid() ^ 1));
    """,
)
def test_syncwarp_orders_the_lanes_of_its_mask(run):
    assert "race" in run("other_half", schedule=0).kinds()
    assert_clean(run("own_half"))


HALVES = """
    u32 half = tid() / 64;
    put(AT(1), 4 * tid(), 1);
    barrier_sync(1 + half, 64, AT(2));
    get(AT(3), 4 * (tid() ^ %d));
"""


@kernels(race=HALVES % 64, clean=HALVES % 32)
def test_a_named_barrier_orders_those_it_counts(run):
    assert "race" in run("race", block=128, schedule=1).kinds()
    assert_clean(run("clean", block=128, schedule=1))


PIPE = """
    bool producer = tid() < 32;
    for (u32 step = 0; step < 3; ++step) {
        if (producer) {
            %s
            put(AT(2), 4 * tid(), step);
            barrier_arrive(2, 64, AT(3));
        } else {
            barrier_sync(2, 64, AT(4));
            get(AT(5), 4 * (tid() - 32));
            if (step < 2) barrier_arrive(1, 64, AT(6));
        }
    }
"""


@every_schedule
@kernels(
    store="""
        if (tid() < 32) barrier_arrive(1, 64, AT(1));
        if (tid() < 32) put(AT(2), 4 * tid(), 1);
        if (tid() >= 32) barrier_sync(1, 64, AT(3));
        if (tid() >= 32) get(AT(4), 4 * (tid() - 32));
    """
)
def test_what_follows_an_arrival_is_not_handed_on(run, schedule):
    outcome = run("store", block=64, **schedule)
    assert {"race"} <= set(outcome.kinds()) <= {"race", "uninitialised"}


@every_schedule
@kernels(race=PIPE % "", clean=PIPE % "if (step) barrier_sync(1, 64, AT(1));")
def test_arrive_hands_on_and_does_not_take_up(run, schedule):
    outcome = run("race", block=64, **schedule)
    assert outcome.findings > 0
    assert {"race", "deadlock", "left-over"} >= set(outcome.kinds()), outcome.report
    assert_clean(run("clean", block=64, **schedule))


@every_schedule
@kernels(
    handed_on="""
        u32 warp = tid() / 32;
        if (warp == 0) put(AT(1), 4 * tid(), 1);
        if (warp < 2) barrier_sync(1, 64, AT(2));
        if (warp > 0) barrier_sync(2, 64, AT(3));
        if (warp == 2) get(AT(4), 4 * (tid() - 64));
    """,
    used_again="""
        if (tid() < 32) put(AT(1), 4 * tid(), 1);
        barrier_sync(1, 64, AT(2));
        if (tid() >= 96) get(AT(3), 4 * (tid() - 96));
    """,
)
def test_barriers_hand_on_what_their_threads_know(run, schedule):
    assert_clean(run("handed_on", block=96, **schedule))
    if schedule["schedule"] == 0:  # the first two warps meet, then the others, who hear nothing of it
        assert_finding(
            run("used_again", block=128, **schedule), "race", "kernel.cu:3", "after thread 31, which stored it"
        )


NARROW = """
    %(type)s value = tid();
    store_shared<sizeof value>(shared_base() + (tid() %(shared)s) * sizeof value, &value, AT(1));
    barrier_sync(0, 0, AT(2));
    uint8_t all[16];
    load_shared<16>(all, shared_base() + 16 * (tid() %% 2), AT(3));
    barrier_sync(0, 0, AT(4));
    store_shared<sizeof value>(shared_base() + (tid() %(shared)s) * sizeof value, &value, AT(5));
"""


@kernels(
    halves=NARROW % {"type": "uint16_t", "shared": ""},
    bytes=NARROW % {"type": "uint8_t", "shared": ""},
    race=NARROW % {"type": "uint8_t", "shared": "/ 2"},
)
def test_neighbours_in_one_word_are_no_race(run):
    assert_clean(run("halves", block=64))
    assert_clean(run("bytes", block=64))
    assert_finding(run("race", block=64), "race", "a store of 1 bytes")


WORDS_THEN_BYTES = """
    uint8_t value = 1;
    put(AT(1), 4 * tid(), 1);
    get(AT(2), 4 * tid());
    %s
    store_shared<1>(shared_base() + 4 * (tid() ^ 1) + 2, &value, AT(4));
"""


@kernels(race=WORDS_THEN_BYTES % "", clean=WORDS_THEN_BYTES % "barrier_sync(0, 0, AT(3));")
def test_narrower_cells_keep_what_was_known(run):
    assert_finding(run("race"), "race", "kernel.cu:4", "a store of 1 bytes")
    assert_clean(run("clean"))


EPOCHS = """
    put(AT(1), 4 * tid(), 1);
    barrier_sync(0, 0, AT(2));
    if (tid() %% 3 == 0) fence(Order::acq_rel, Scope::cta, AT(3));
    if (tid() %% 7 == 0) fence(Order::acq_rel, Scope::cta, AT(4));
    if (tid() < 31) get(AT(5), 0);
    %s
    if (tid() == 31) put(AT(7), 0, 2);
"""


OWN = """
    u32 flag = 1;
    put(AT(1), 4 * tid(), 0);
    get(AT(2), 4 * tid());
    put(AT(3), 4 * tid(), 0);
    barrier_sync(0, 0, AT(4));
    if (tid() == 6) {
        get(AT(5), 0);
        store_strong<4>(Space::shared, shared_base() + 4, &flag, Order::release, Scope::cta, AT(6));
    }
    if (tid() == 5) {
        fence(Order::acq_rel, Scope::cta, AT(7));
        get(AT(8), 0);
        load_strong<4>(Space::shared, &flag, shared_base() + 4, Order::acquire, Scope::cta, AT(9));
        if (flag) put(AT(10), 0, 1);
    }
"""


@every_schedule
@kernels(own=OWN)
def test_a_thread_does_not_race_with_itself(run, schedule):
    assert_clean(run("own", **schedule))


@every_schedule
@kernels(
    race=EPOCHS % "syncwarp(tid() == 21 ? 1u << 21 : ALL & ~(1u << 21), AT(6));",
    clean=EPOCHS % "syncwarp(ALL, AT(6));",
)
def test_reads_of_one_warp_at_several_epochs(run, schedule):
    outcome = run("race", **schedule)
    if schedule["schedule"] == 0:
        assert_finding(outcome, "race", "nothing orders it after thread 21, which read it")
    assert_clean(run("clean", **schedule))


@every_schedule
@kernels(
    read_before="""
        put(AT(1), 4 * tid(), 0);
        barrier_sync(0, 0, AT(2));
        if (tid() == 0) get(AT(3), 4);
        if (tid() == 40) atomic<u32>(Op::add, Space::shared, shared_base() + 4, 1, Order::relaxed, Scope::cta, AT(4));
    """,
    load_after="""
        u32 value;
        put(AT(1), 4 * tid(), 0);
        barrier_sync(0, 0, AT(2));
        if (tid() == 0) atomic<u32>(Op::add, Space::shared, shared_base(), 1, Order::relaxed, Scope::cta, AT(3));
        if (tid() == 0) load_strong<4>(Space::shared, &value, shared_base(), Order::relaxed, Scope::cta, AT(4));
        if (tid() == 40) get(AT(5), 0);
    """,
    loads="""
        u32 value;
        put(AT(1), 4 * tid(), 0);
        barrier_sync(0, 0, AT(2));
        if (tid() & 1) load_strong<4>(Space::shared, &value, shared_base(), Order::relaxed, Scope::cta, AT(3));
        else get(AT(4), 0);
    """,
)
def test_strong_accesses_and_plain_reads(run, schedule):
    outcome = run("read_before", block=64, **schedule)
    assert_finding(outcome, "race")
    assert "kernel.cu:3" in outcome.report
    assert "kernel.cu:4" in outcome.report
    assert "race" in run("load_after", block=64, **schedule).kinds()
    assert_clean(run("loads", block=64, **schedule))


FLAG = """
    u32 flag = 1;
    if (tid() == 0) put(AT(1), 4, 0);
    barrier_sync(0, 0, AT(2));
    if (tid() == 0) {
        put(AT(3), 8, 5);
        %(release)s
        store_strong<4>(Space::shared, shared_base() + 4, &flag, Order::relaxed, Scope::cta, AT(5));
    }
    if (tid() == 63) {
        do load_strong<4>(Space::shared, &flag, shared_base() + 4, Order::relaxed, Scope::cta, AT(6));
        while (flag == 0);
        %(acquire)s
        get(AT(8), 8);
    }
"""
OVERWRITTEN = """
    if (tid() == 32) {
        while (flag != 1) load_strong<4>(Space::shared, &flag, shared_base() + 4, Order::relaxed, Scope::cta, AT(9));
        flag = 2;
        store_strong<4>(Space::shared, shared_base() + 4, &flag, Order::relaxed, Scope::cta, AT(10));
    }
    if (tid() == 63)"""
CTA = {"release": "fence(Order::acq_rel, Scope::cta, AT(4));", "acquire": "fence(Order::acq_rel, Scope::cta, AT(7));"}


@every_schedule
@kernels(
    clean=FLAG % CTA,
    no_release=FLAG % (CTA | {"release": ""}),
    no_acquire=FLAG % (CTA | {"acquire": ""}),
    first_block=FLAG % (CTA | {"release": "if (block() == 0) " + CTA["release"]}),
    overwritten=FLAG.replace("if (tid() == 63)", "flag = 0;" + OVERWRITTEN).replace("flag == 0", "flag != 2") % CTA,
)
def test_a_flag_within_the_block(run, schedule):
    assert_clean(run("clean", block=64, **schedule))
    assert_finding(run("no_release", block=64, **schedule), "race", "kernel.cu:8")
    assert_finding(run("no_acquire", block=64, **schedule), "race", "kernel.cu:8")
    assert_finding(
        run("first_block", block=64, grid=2, **schedule | {"block_order": 0}), "race", "kernel.cu:8 block (1,0,0)"
    )
    if schedule["schedule"] == 0:  # the reader sees the second value alone, which releases nothing
        assert_finding(run("overwritten", block=64, **schedule), "race", "kernel.cu:8")


ATOMICS = """
    if (tid() == 0) put(AT(1), 0, 0);
    %s
    atomic<u32>(Op::add, Space::shared, shared_base(), 1, Order::relaxed, Scope::cta, AT(3));
    %s
    if (tid() == 0) put_to(AT(6), arrays[0], get(AT(5), 0));
"""


@every_schedule
@kernels(
    no_barrier_before=ATOMICS % ("", "barrier_sync(0, 0, AT(4));"),
    no_barrier_after=ATOMICS % ("barrier_sync(0, 0, AT(2));", "syncwarp(ALL, AT(4));"),
    clean=ATOMICS % ("barrier_sync(0, 0, AT(2));", "barrier_sync(0, 0, AT(4));"),
)
def test_atomics_do_not_race_with_each_other_but_with_plain_accesses(run, array, schedule):
    out = array("out", 4)
    before = run("no_barrier_before", out, block=64, **schedule)
    assert {"race", "uninitialised"} >= set(before.kinds())
    assert before.findings
    assert "race" in run("no_barrier_after", out, block=64, **schedule).kinds()
    assert_clean(run("clean", out, block=64, **schedule))
    assert out.view() == 64
