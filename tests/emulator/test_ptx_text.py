"""What NVRTC does not emit, or not at will, as PTX by hand: these tests need no NVRTC."""

import numpy as np
import pytest

from emulator import library
from emulator.cuda import Kernels
from emulator.small_kernels import Array, machine_folder

HEAD = """.version 8.0
.target sm_80
.address_size 64
.file 1 "folder/kernel.cu"
"""
REGISTERS = ".reg .pred %p<3>; .reg .b16 %h<3>; .reg .b32 %r<9>; .reg .f64 %fd<3>; .reg .b64 %rd<9>;"


@pytest.fixture
def run(pytestconfig):
    """`run(declarations, body, values, ...)`: a kernel of one array, whose address is in %rd1; outcome and values."""
    folder = machine_folder(pytestconfig)
    library.load(folder)

    def call(declarations, body, values, **how):
        text = f"""{HEAD}{declarations}
.visible .entry k(.param .u64 k_param_0)
{{
    {REGISTERS}
    ld.param.u64 %rd1, [k_param_0];
{body}
    ret;
}}
"""
        array = Array("array", values.nbytes, values)
        outcome = Kernels(folder, text).run("k", array, block=1, **how)
        after = array.view(values.dtype).copy()
        array.destroy()
        return outcome, after

    return call


def test_registers_are_nan_before_they_are_written(run):
    body = "st.global.b32 [%rd1], %r1; st.global.b16 [%rd1+4], %h1; st.global.b64 [%rd1+8], %rd2; "
    body += "st.global.f64 [%rd1+16], %fd1;"
    outcome, out = run("", body, np.zeros(3))
    assert outcome.report == ""
    assert np.isnan([out.view("float32")[0], out.view("float16")[2], *out[1:]]).all()


def test_tables_of_every_type(run):
    declarations = """.global .align 4 .u32 words[3] = {70000, -1};
.const .align 2 .s16 halves[2] = {-2, 0x1234};
.global .f32 floats[2] = {0f3FC00000, 2.5};
.global .f64 doubles[2] = {0d3FF8000000000000, 0.1};
.global .align 8 .u64 places[3] = {words, words+4, generic(words)+8};
.global .v2 .u32 pair = {1, 2};
"""
    loads = [("global.u32", "%r1", f"words+{4 * i}", "u32") for i in range(3)]
    loads += [("const.s16", "%r1", f"halves+{2 * i}", "s32") for i in range(2)]
    loads += [("global.b32", "%r1", f"floats+{4 * i}", "b32") for i in range(2)] + [
        ("global.b32", "%r1", "pair+4", "b32")
    ]
    body = ""
    for place, (kind, register, address, stored) in enumerate(loads):
        body += f"ld.{kind} {register}, [{address}]; st.global.{stored} [%rd1+{8 * place}], {register};\n"
    for i in range(3):
        body += f"ld.global.u64 %rd2, [places+{8 * i}]; ld.u32 %r1, [%rd2]; st.global.b32 [%rd1+{64 + 8 * i}], %r1;\n"
    body += (
        "ld.global.f64 %fd1, [doubles+8]; st.global.f64 [%rd1+88], %fd1; mov.u64 %rd2, words+4; sub.u64 %rd3, %rd2, 4;"
    )
    body += "ld.global.u32 %r2, [%rd3]; st.global.u32 [%rd1+96], %r2;"
    outcome, out = run(declarations, body, np.zeros(13, np.int64))
    assert outcome.report == ""
    words = out.view(np.int32)[::2]
    assert words[:5].tolist() == [70000, -1, 0, -2, 0x1234]
    assert out.view(np.float32)[10:14:2].tolist() == [1.5, 2.5]
    assert words[7:11].tolist() == [2, 70000, -1, 0]
    assert out.view(np.float64)[11] == 0.1 and words[12] == 70000


CALLEE = """.func (.param .b32 result) read(.param .b64 where, .param .b32 more)
{
    .reg .b32 %r<3>; .reg .b64 %rd<2>; .local .align 4 .b8 own[4];
    ld.param.b64 %rd1, [where]; ld.param.b32 %r1, [more]; st.local.b32 [own], %r1;
    ld.local.b32 %r2, [%rd1]; ld.local.b32 %r1, [own]; add.u32 %r2, %r2, %r1; st.param.b32 [result], %r2; ret;
}
"""
CALL = """{ .param .b64 first; .param .b32 second; .param .b32 out;
      st.param.b64 [first], %rd2; st.param.b32 [second], 5;
      call (out), read, (first, second); ld.param.b32 %r2, [out]; st.global.b32 [%rd1], %r2; }"""


def test_a_function_reaches_the_local_arrays_of_its_callers(run):
    arrays = ".local .align 8 .b8 one[8]; .local .align 4 .b8 two[4]; st.local.b32 [two], 70; st.local.b32 [one+4], 30;"
    outcome, out = run(CALLEE, f"{arrays} mov.u64 %rd2, one; add.u64 %rd2, %rd2, 4; {CALL}", np.zeros(1, np.int32))
    assert outcome.report == "" and out.tolist() == [35]
    for offset, what in ((8, "outside the thread's arrays"), (2, "not aligned")):
        body = f"{arrays} mov.u64 %rd2, one; add.u64 %rd2, %rd2, {offset}; {CALL}"
        outcome, _ = run(CALLEE, body, np.zeros(1, np.int32))
        assert outcome.kinds() == ["fault"] and what in outcome.report, outcome.report


def test_a_call_through_what_is_no_function_is_a_finding(run):
    other = ".func (.param .b32 result) other(.param .b32 only) { st.param.b32 [result], 3; ret; }\n"
    direct, indirect = "call (out), read, (first, second);", "call (out), %rd3, (first, second), P;"
    call = CALL.replace(direct, f"P: .callprototype (.param .b32 _) _ (.param .b64 _, .param .b32 _); {indirect}")
    local = ".local .align 4 .b8 one[4]; st.local.b32 [one], 8; mov.u64 %rd2, one;"
    outcome, out = run(CALLEE + other, f"{local} mov.u64 %rd3, read; {call}", np.zeros(1, np.int32))
    assert outcome.report == "" and out.tolist() == [13]
    for target in ("other", "1234"):
        outcome, _ = run(CALLEE + other, f"{local} mov.u64 %rd3, {target}; {call}", np.zeros(1, np.int32))
        assert outcome.kinds() == ["fault"] and "no function of that kind" in outcome.report, outcome.report


def test_shared_arrays_of_functions_and_kernels_lie_apart(run):
    function = """.shared .align 4 .b8 outside[4];
.func (.param .b32 result) place() { .reg .b32 %r<2>; .shared .align 16 .b8 inside[20]; mov.u32 %r1, inside;
    st.param.b32 [result], %r1; ret; }
.visible .entry other() { .shared .b8 large[4096]; ret; }
"""
    body = """.shared .align 8 .b8 own[40]; { .param .b32 out; call (out), place, (); ld.param.b32 %r1, [out]; }
      mov.u32 %r2, own; mov.u32 %r3, outside; st.global.b32 [%rd1], %r1; st.global.b32 [%rd1+4], %r2;
      st.global.b32 [%rd1+8], %r3;"""
    outcome, out = run(function, body, np.zeros(3, np.int32))
    assert outcome.report == ""
    spans = sorted((int(at) - 0x400, int(at) - 0x400 + size) for at, size in zip(out, (20, 40, 4)))
    assert spans[0][0] == 0 and spans[0][1] <= spans[1][0] and spans[1][1] <= spans[2][0] and spans[2][1] < 96
    assert out[0] % 16 == 0 and out[1] % 8 == 0


def test_parameters_are_laid_out_by_their_alignment(pytestconfig, run):
    text = f"""{HEAD}.visible .entry k(
    .param .u8 a, .param .f64 b, .param .u16 c, .param .align 16 .b8 d[16], .param .u64 out)
{{
    {REGISTERS}
    ld.param.u64 %rd1, [out]; ld.param.s8 %r1, [a]; ld.param.f64 %fd1, [b]; ld.param.u16 %r2, [c];
    ld.param.v2.b64 {{%rd2, %rd3}}, [d]; st.global.s32 [%rd1], %r1; st.global.u32 [%rd1+4], %r2;
    st.global.f64 [%rd1+8], %fd1; st.global.v2.b64 [%rd1+16], {{%rd2, %rd3}}; ret;
}}
"""
    kernels = Kernels(machine_folder(pytestconfig), text)
    assert kernels.translation.kernels["k"].param_bytes == 56
    out = Array("out", 32)
    words = np.zeros(7, np.int64)
    words[0], words[1:2], words[2], words[4:6], words[6] = (
        0xFE,
        np.float64(2.5).view(np.int64),
        513,
        (7, 9),
        out.address,
    )
    outcome = kernels.run("k", *(Word(word) for word in words), block=1)
    assert outcome.report == ""
    assert out.view("int32")[:2].tolist() == [-2, 513] and out.view("float64")[1] == 2.5
    assert out.view("int64")[2:].tolist() == [7, 9]
    out.destroy()


class Word:
    """Eight bytes of parameters, where `Kernels.run` takes an array's address."""

    def __init__(self, word):
        self.address = int(word) & 0xFFFFFFFFFFFFFFFF


def test_a_position_holds_until_the_next_real_line(run):
    body = ".loc 1 17 3\nst.global.b32 [%rd1], 1;\n.loc 1 0 3\nst.global.b32 [%rd1+400], 1;"
    outcome, _ = run("", body, np.zeros(1, np.int32))
    assert outcome.kinds() == ["out-of-bounds"] and "kernel.cu:17 " in outcome.report, outcome.report


def test_a_generic_address_in_place_of_a_shared_one_is_a_finding(run):
    body = ".shared .b32 box; cvta.shared.u64 %rd2, box; cvta.to.shared.u64 %rd3, %rd2; st.shared.b32 [%rd3], 4;"
    outcome, _ = run("", body, np.zeros(1, np.int32))
    assert outcome.report == ""
    outcome, _ = run("", body + " ld.shared.b32 %r1, [%rd2];", np.zeros(1, np.int32))
    assert outcome.kinds() == ["fault"] and "an address of another space" in outcome.report, outcome.report


def test_the_division_by_zero_is_a_finding(run):
    for kind, register in (("s32", "%r"), ("u64", "%rd")):
        body = f"mov.{kind} {register}4, 0; rem.{kind} {register}5, 7, {register}4;"
        outcome, _ = run("", body, np.zeros(1, np.int32))
        assert outcome.kinds() == ["fault"] and "division by zero" in outcome.report, outcome.report
