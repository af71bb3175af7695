"""The machine's memory, launches and findings: bounds, alignment, poison, the flags of arrays, what ends a launch."""

import shutil

import numpy as np
import pytest

from emulator import build, library
from emulator.small_kernels import assert_finding, every_schedule, fixtures, kernels, machine_folder, require_compiler

run, array = fixtures()


@every_schedule
@kernels(
    coordinates="""
        u32 rank = (registers->ctaid.z * nctaid.y + registers->ctaid.y) * nctaid.x + registers->ctaid.x;
        u32 thread = (registers->tid.z * ntid.y + registers->tid.y) * ntid.x + registers->tid.x;
        u32 threads = ntid.x * ntid.y * ntid.z;
        put_to(AT(1), arrays[0] + 4 * (rank * threads + thread), registers->warpid << 8 | registers->laneid);
    """
)
def test_threads_and_blocks_have_coordinates(run, array, schedule):
    out = array("out", 4 * 24 * 40, write_once=1)
    outcome = run("coordinates", out, grid=(4, 3, 2), block=(5, 4, 2), **schedule)
    assert outcome.report == ""
    thread = np.arange(40)
    np.testing.assert_array_equal(out.view().reshape(24, 40), np.tile(thread // 32 << 8 | thread % 32, (24, 1)))
    assert outcome.counters.global_stores == 24 * 40


@pytest.mark.parametrize(
    ("offset", "text"),
    [
        (-4, "the nearest array 'keys' (100 bytes) starts 4 bytes later"),
        (100, "it is byte 100 counted from the start of the nearest array, 'keys' (100 bytes)"),
        (1 << 33, "counted from the start of the nearest array"),
    ],
)
@kernels(
    load="if (tid() == 3) get_from(AT(5), arrays[0] + ((const u64*)arrays[1])[0]); put_to(AT(6), arrays[2], 1);",
)
def test_out_of_bounds_ends_the_launch(run, array, offset, text):
    offsets = array("offset", 8, np.array([offset], np.int64))
    array("gone", 1 << 16).destroy()
    outcome = run("load", array("keys", 100), offsets, array("out", 4), schedule=1)
    assert_finding(outcome, "out-of-bounds", "kernel.cu:5 block (0,0,0) thread 3: a load of 4 bytes at global", text)


@kernels(touch="get_from(AT(1), arrays[0]);")
def test_an_array_that_was_destroyed_is_out_of_bounds(run, array):
    gone = array("gone", 64)
    assert run("touch", gone).report == ""
    gone.destroy()
    assert_finding(run("touch", gone), "out-of-bounds")
    assert library.machine().machine_destroy(gone.address) == 1


@kernels(straddle="u64 value; load_global<8>(&value, arrays[0] + 8 * tid(), AT(1));")
def test_an_access_that_straddles_the_end_is_out_of_bounds(run, array):
    assert run("straddle", array("whole", 64), block=8).report == ""
    assert_finding(run("straddle", array("short", 60), block=8), "out-of-bounds", "thread 7")


@kernels(
    global_memory="u64 value; load_global<8>(&value, arrays[0] + 4, AT(1));",
    shared_memory="u64 value = 0; store_shared<8>(shared_base() + 4, &value, AT(1));",
    whole_vector="u32 value[4] = {}; store_shared<16>(shared_base() + 8, value, AT(1));",
)
def test_misaligned_accesses(run, array):
    assert_finding(run("global_memory", array("x", 64)), "misaligned", "a load of 8 bytes at 'x' + 4")
    assert_finding(run("shared_memory"), "misaligned", "a store of 8 bytes at shared address 0x404 (shared memory + 4)")
    assert_finding(run("whole_vector"), "misaligned", "no multiple of 16")


@kernels(store="put_to(AT(1), arrays[0] + 4 * (tid() / 2), 1);")
def test_flags_of_arrays(run, array):
    plain, once, fixed = array("x", 64), array("out", 64, write_once=1), array("q", 64, np.zeros(64, "u1"), read_only=1)
    assert run("store", plain).report == ""
    for _ in range(2):  # stores of an earlier launch do not count
        outcome = run("store", once)
        assert_finding(outcome, "write-once", "a store of 4 bytes at 'out' + 0, where this launch has stored before")
        assert outcome.findings == 16
    assert_finding(run("store", fixed), "read-only", "at 'q' + 0, which is an input")
    assert not fixed.values.any()
    assert library.machine().machine_describe(fixed.address, b"q", 0) == 0
    assert run("store", fixed).report == ""


@kernels(
    halves="uint16_t value = 0; store_global<2>(arrays[0] + 2 * tid(), &value, AT(1));",
    again="uint8_t value = 0; if (tid() == 9) store_global<1>(arrays[0] + 19, &value, AT(2)); "
    "if (tid() == 9) store_global<1>(arrays[0] + 19, &value, AT(3));",
)
def test_write_once_counts_bytes(run, array):
    out = array("out", 64, write_once=1)
    assert run("halves", out).report == ""
    assert_finding(run("again", out), "write-once", "kernel.cu:3", "at 'out' + 19")


@every_schedule
@kernels(
    read="u32 value; load_global_nc<4>(&value, arrays[0], AT(1)); put_to(AT(2), arrays[1] + 4 * tid(), value);",
    written="u32 value; if (block()) put_to(AT(1), arrays[0], 1); else load_global_nc<4>(&value, arrays[0], AT(2));",
)
def test_the_non_coherent_cache_needs_an_array_that_nobody_writes(run, array, schedule):
    one, other = array("one", 128), array("other", 128)
    assert run("read", one, other, **schedule).report == ""
    assert run("read", other, one, **schedule).report == ""
    for first in (0, 1):  # whichever block comes first
        outcome = run("written", one, grid=2, **schedule | {"block_order": first})
        assert_finding(outcome, "non-coherent", f"kernel.cu:{1 + first} block ({1 - first},0,0)", "'one' +")


@kernels(ends="put_to(AT(1), arrays[0], 5); put_to(AT(2), arrays[0] + 5000000000, 6);")
def test_sparse_arrays_cost_what_is_touched(run, array):
    sparse = array("sparse", 5000000004, sparse=1, write_once=1)
    assert run("ends", sparse, block=1).report == ""
    assert (sparse.values[0], sparse.values[2500000000], sparse.values[5000000000]) == (5, 0, 6)


def test_pages_that_nobody_may_touch_lie_between_arrays(array):
    arrays = [array("x", nbytes) for nbytes in (1, 65536 - 256, 65536, 1 << 20)]
    ends = [one.address + len(one.values) for one in arrays]
    assert all(after.address - end >= 65536 for end, after in zip(ends, arrays[1:], strict=False))


def test_memory_is_poisoned(array):
    assert (array("x", 1000).values == 0xFF).all()


def test_arrays_are_aligned_to_256_bytes_and_no_better(array):
    assert {array("x", 8).address % 512 for _ in range(3)} == {256}


@every_schedule
@kernels(
    uninitialised="""
        float value = 0;
        if (block() == 0) store_shared<4>(shared_base() + 4 * tid(), &value, AT(1));
        load_shared<4>(&value, shared_base() + 4 * tid(), AT(2));
        store_global<4>(arrays[0] + 4 * (32 * block() + tid()), &value, AT(3));
    """
)
def test_shared_memory_is_poisoned_for_each_block(run, array, schedule):
    out = array("out", 3 * 32 * 4)
    outcome = run("uninitialised", out, grid=3, **schedule)
    assert_finding(outcome, "uninitialised", "a load of 4 bytes at shared memory +", "was never written")
    assert outcome.findings == 64
    values = out.view("float32").reshape(3, 32)
    assert not values[0].any()
    assert np.isnan(values[1:]).all()
    assert run("uninitialised", out, grid=3, checks=0).report == ""


@kernels(
    beyond="put(AT(1), 4 * tid(), 1);",
    before="put(AT(1), -4, 1);",
    address="put_to(AT(1), arrays[0], shared_base()); put_to(AT(1), arrays[0] + 4, shared_bytes());",
    swizzled="put(AT(1), (shared_base() + 4 * tid()) & 0x80 ? 4 * tid() : 4 * tid() + 128, 1);",
)
def test_shared_memory_lies_in_a_window(run, array):
    out = array("out", 8)
    for base in (0x400, 0x480):
        assert run("beyond", shared=128, shared_base=base).report == ""
        outcome = run("beyond", shared=124, shared_base=base)
        assert_finding(outcome, "out-of-bounds", "a store of 4 bytes at byte 124 of the block's 124 bytes")
        assert_finding(run("before", shared_base=base), "out-of-bounds", "at byte -4 of")
        assert run("address", out, shared=96, shared_base=base).report == ""
        assert out.view().tolist() == [base, 96]
    # Code that takes the window for aligned to 256 bytes shows in one of the two.
    assert run("swizzled", block=32, shared=256, shared_base=0x400).report == ""
    assert run("swizzled", block=32, shared=128, shared_base=0x480).report == ""
    assert_finding(run("swizzled", block=32, shared=128, shared_base=0x400), "out-of-bounds")


@kernels(
    spaces="""
        u32 local[2] = {11, 0}, value = 7;
        u64 shared = shared_to_generic(shared_base() + 4 * tid()), stack = (u64)local, global = arrays[0] + 4 * tid();
        store_generic<4>(shared, &value, AT(1));
        store_generic<4>(global, &value, AT(2));
        store_generic<4>(stack + 4, &value, AT(3));
        u64 addresses[] = {shared, global, stack, stack + 4};
        u32 sum = 0;
        for (u64 address : addresses) {
            load_generic<4>(&value, address, AT(4));
            sum += value;
        }
        bool right = is_shared(shared) && is_global(global) && is_local(stack) && generic_to_shared(shared) < 0x10000;
        bool wrong = is_shared(global) || is_local(global) || is_local(shared) || is_global(shared) || is_global(stack);
        put_to(AT(5), global, right && !wrong ? sum : 0);
    """,
    nowhere="u32 value; load_generic<4>(&value, 64, AT(1));",
)
def test_generic_addresses(run, array):
    out = array("out", 256)
    assert run("spaces", out, block=64).report == ""
    assert (out.view() == 7 + 7 + 11 + 7).all()
    assert_finding(run("nowhere"), "out-of-bounds")


@kernels(
    read="""
        static const u32 table[4] = {5, 6, 7, 8};
        static StaticArray known("table", table, sizeof table);
        put_to(AT(1), arrays[0], get_from(AT(2), (u64)(table + 3)));
    """,
    write="""
        static u32 table[4];
        static StaticArray known("counts", table, sizeof table, true);
        put_to(AT(1), (u64)(table + 1), 3);
    """,
    write_constant="""
        static u32 table[4];
        static StaticArray known("weights", table, sizeof table);
        put_to(AT(1), (u64)(table + 1), 3);
    """,
)
def test_arrays_of_the_kernels_file(run, array):
    out = array("out", 4)
    assert run("read", out, block=1).report == ""
    assert out.view() == 8
    assert run("write").report == ""
    assert_finding(run("write_constant"), "read-only", "'weights' + 4")


@kernels(
    trap="if (tid() == 2) trap(AT(7));",
    fault='if (tid() == 2) fault("division by zero", AT(8));',
    hang="if (tid() == 2) for (;;) step(AT(9));",
    overflow="""
        struct Deep {
            static u32 of(volatile u32 n) { volatile char room[4096]; room[0] = n; return n + of(n + room[0]); }
        };
        if (tid() == 2) Deep::of(1);
    """,
    wild="if (tid() == 2) *(volatile int*)8 = 1;",
    stops="if (tid() == 2) exit_thread(); put_to(AT(1), arrays[0] + 4 * tid(), 1);",
)
def test_what_ends_a_launch_or_a_thread(run, array):
    assert_finding(run("trap"), "trap", "kernel.cu:7 block (0,0,0) thread 2")
    assert_finding(run("fault"), "fault", "kernel.cu:8 block (0,0,0) thread 2: division by zero")
    assert_finding(run("hang", most_steps=1000000), "hang", "kernel.cu:9")
    assert_finding(run("overflow"), "stack-overflow", "block (0,0,0) thread 2")
    assert_finding(run("wild"), "fault", "host address 0x8")
    out = array("out", 128, np.zeros(128, "u1"))
    assert run("stops", out).report == ""
    assert out.view().tolist() == [1, 1, 0] + [1] * 29


@kernels(nothing="")
def test_launches_that_no_device_would_take(run):
    for refused in (
        {"block": 1025},
        {"block": (1, 1, 65)},
        {"grid": 0},
        {"grid": (1, 65536, 1)},
        {"shared": 227 * 1024 + 1},
        {"shared_base": 0x440},
        {"resident_blocks": 0},
    ):
        outcome = run("nothing", **refused)
        assert outcome.findings == -1
        assert_finding(outcome, "refused")
    assert run("nothing", block=1024, shared=227 * 1024, grid=(1, 2, 1)).report == ""
    assert run("nothing", block=1, grid=(70000, 1, 1)).report == ""


@kernels(twice="for (u32 i = 0; i < 9; ++i) get(AT(1), 4 * i); get(AT(2), 0);")
def test_a_finding_is_told_once_a_line_and_counted(run):
    outcome = run("twice", block=1)
    assert outcome.findings == 10
    first, second = outcome.report.splitlines()
    assert first.startswith("[uninitialised] kernel.cu:1 block (0,0,0) thread 0: ")
    assert first.endswith("(and 8 more)")
    assert second.startswith("[uninitialised] kernel.cu:2 ")
    assert library.machine().machine_findings(b"uninitialised") == 10
    assert library.machine().machine_findings(b"race") == 0


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(build, "available", lambda: False)
    for required, outcome in (("nvrtc", pytest.skip.Exception), ("nvrtc,emulator", pytest.fail.Exception)):
        monkeypatch.setenv("CUFLASH_REQUIRE", required)
        with pytest.raises(outcome, match=r"g\+\+ is missing"):
            require_compiler()


@pytest.fixture
def folder(pytestconfig, tmp_path):
    """An empty folder but for the machine, which takes seconds to build."""
    shutil.copy(build.machine(machine_folder(pytestconfig)), tmp_path)
    return tmp_path


def test_a_source_that_does_not_compile_says_why(folder):
    with pytest.raises(build.CompilerError, match=r"(?s)kernel-\w+\.cpp.*error"):
        build.kernel("no C++", folder)
    assert len(list(folder.glob("*.so"))) == 1


def test_libraries_are_kept_by_content(folder):
    sources = [f'extern "C" int number() {{ return {number}; }}' for number in (1, 2)]
    assert [build.kernel(source, folder).number() for source in (*sources, sources[0])] == [1, 2, 1]
    assert len(list(folder.glob("kernel-*.so"))) == 2
    assert len(list(folder.glob("libmachine-*.so"))) == 1
    assert not list(folder.glob(".build-*"))
