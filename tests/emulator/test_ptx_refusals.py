"""What the translator does not know it must refuse, naming the line and the text of the PTX."""

import pytest

from emulator.cuda import compile_text, cuda_kernels
from emulator.manual import blackwell, conversions, floats, halves, integers, logic, memory
from emulator.ptx import families  # noqa: F401  (registers the forms)
from emulator.ptx.forms import FORMS
from emulator.ptx.translate import translate
from emulator.ptx.tree import UnknownInstruction

HEAD = """.version 8.0
.target sm_80
.address_size 64
"""
BODY = """.global .b32 number;
.visible .entry k(.param .u64 k_param_0)
{
    .reg .pred %p<3>; .reg .b16 %h<3>; .reg .b32 %r<5>; .reg .f32 %f<3>; .reg .b64 %rd<5>; .local .align 4 .b8 box[8];
"""
LINE = 8  # of the statement that is put into the body

REFUSED = {
    "an opcode nobody has": "frobnicate.b32 %r1, %r2;",
    "a garbled opcode": "add..s32 %r1, %r2, %r3;",
    "an unknown qualifier": "add.rq.f32 %f1, %f1, %f2;",
    "a qualifier of another type": "add.ftz.f64 %rd1, %rd1, %rd2;",
    "qualifiers in another order": "ld.v2.global.b32 {%r1, %r2}, [%rd1];",
    "a missing rounding mode": "fma.f32 %f1, %f1, %f2, %f2;",
    "a type that does not exist": "add.s24 %r1, %r2, %r3;",
    "a comparison of another type": "setp.lo.s32 %p1, %r1, %r2;",
    "an ordered comparison of bits": "setp.lt.b32 %p1, %r1, %r2;",
    "stochastic rounding": "cvt.rs.f16x2.f32 %r1, %f1, %f2, %r3;",
    "a tensor-core product": "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%rd1}, {%rd3}, {%rd4}, {%rd1};",
    "a barrier of a cluster": "barrier.cluster.arrive;",
    "a proxy fence": "fence.proxy.async;",
    "an unsynchronised shuffle": "shfl.bfly.b32 %r1, %r2, 1, 31;",
    "a register of another width": "add.s32 %r1, %rd1, %r2;",
    "a narrow register": "ld.global.b32 %h1, [%rd1];",
    "a 32-bit address": "ld.global.b32 %r1, [%r2];",
    "a predicate as a number": "add.s32 %r1, %p1, %r2;",
    "a number as a predicate": "@%r1 add.s32 %r1, %r1, %r2;",
    "a name that is not declared": "add.s32 %r1, %q1, %r2;",
    "a register beyond its range": "add.s32 %r1, %r5, %r2;",
    "a special register nobody knows": "mov.u32 %r1, %envreg3;",
    "too few operands": "add.s32 %r1, %r2;",
    "too many operands": "add.s32 %r1, %r2, %r3, %r4;",
    "an integer where a float is meant": "add.f32 %f1, %f2, 1;",
    "a vector of another length": "ld.global.v2.b32 {%r1, %r2, %r3}, [%rd1];",
    "a load into a constant": "ld.global.b32 7, [%rd1];",
    "a store to constants": "st.const.b32 [%rd1], %r1;",
    "an acquiring store": "st.acquire.gpu.b32 [%rd1], %r1;",
    "a scope without an order": "ld.gpu.global.b32 %r1, [%rd1];",
    "an order without a scope": "ld.acquire.global.b32 %r1, [%rd1];",
    "an uncached load of shared memory": "ld.shared.nc.b32 %r1, [%r2];",
    "a variable of another space": "ld.shared.b32 %r1, [number];",
    "a parameter's end overrun": "ld.param.b64 %rd1, [k_param_0+4];",
    "an offset before a parameter": "ld.param.b32 %r1, [k_param_0+-4];",
    "a jump to no label": "bra NOWHERE;",
    "a jump to a register": "bra %r1;",
    "a call of nothing": "call.uni nobody, ();",
    "a copy of a strange size": "cp.async.ca.shared.global [%r1], [%rd1], 12;",
    "a wide copy through the first cache": "cp.async.cg.shared.global [%r1], [%rd1], 8;",
    "a truth table of nine bits": "lop3.b32 %r1, %r2, %r3, %r4, 256;",
    "signs without magnitudes": "min.xorsign.f32 %f1, %f1, %f2;",
    "a scope's register outside it": "{ .reg .b32 inner; mov.b32 inner, 1; } mov.b32 %r1, inner;",
    "something that is no statement": "?!;",
    "an operand that is none": "add.s32 %r1, %r2, %r3 %r4;",
    "a variable of shared memory beyond 32 bits": "mov.u16 %h1, number;",
}


def refusal(text):
    with pytest.raises(UnknownInstruction) as refused:
        translate(text)
    return refused.value


@pytest.mark.parametrize("what", REFUSED)
def test_unknown_and_garbled_instructions_are_refused(what):
    statement = REFUSED[what]
    error = refusal(f"{HEAD}{BODY}    {statement}\n    ret;\n}}\n")
    assert error.line == LINE
    assert f"PTX line {LINE}: " in str(error) and error.text.strip().split()[-1].rstrip(";") in statement


def test_the_frame_of_these_tests_is_accepted():
    assert list(translate(f"{HEAD}{BODY}    add.s32 %r1, %r2, %r3;\n    ret;\n}}\n").kernels) == ["k"]


@pytest.mark.parametrize(
    ("declaration", "text"),
    [
        (".extern .global .b32 elsewhere;", "does not define"),
        (".global .texref image;", "declaration"),
        (".global .b32 two[1] = {1, 2};", "more initial values"),
        (".global .b32 address = number;", "initial value"),
        (".global .b64 address = nobody;", "initial value"),
        (".visible .entry k() .reqnctapercluster 2 { ret; }", "reqnctapercluster"),
        (".visible .entry k() { .reg .b24 %r<2>; ret; }", "type"),
        (".visible .entry k() { .global .b32 inside; ret; }", "inside a function"),
        (".visible .entry k() { ret;", "without an end"),
        (".func f(); .visible .entry k() { call.uni f, (); ret; }", "no body"),
        (".func f(.param .b32 a) { ret; } .visible .entry k() { call.uni f, (); ret; }", "other sizes"),
    ],
)
def test_unknown_declarations_are_refused(declaration, text):
    assert text in str(refusal(f"{HEAD}.global .b32 number;\n{declaration}\n"))


def test_printf_is_refused_by_name(pytestconfig):
    kernels = cuda_kernels(pytestconfig, 'extern "C" __global__ void none() {}')
    source = 'extern "C" __global__ void k(int i) { printf("%d", i); }'
    assert "vprintf has no body" in str(refusal(compile_text(source, "compute_90a")))
    assert kernels.translation.kernels["none"].param_bytes == 0


def test_no_form_goes_untested():
    """Each row of the table is one that a case runs; the instructions of several threads have tests of their own."""
    modules = (integers, logic, floats, halves, conversions, memory, blackwell)
    cases = [one.text for module in modules for one in module.CASES]
    opcodes = {word for text in cases for word in text.replace("{", " ").replace(";", " ").split() if word[0].isalpha()}
    of_threads = {"shfl", "vote", "match", "redux", "elect", "activemask", "bar", "barrier", "fence", "membar", "cp"}
    of_threads |= {"ldmatrix", "mma"}
    of_programs = {"bra", "brx", "call", "ret", "exit", "trap", "brkpt", "nanosleep"}
    rows = {row.pattern: row for name, rows in FORMS.items() if name not in of_threads | of_programs for row in rows}
    untested = [pattern for pattern, row in rows.items() if not any(row.regex.match(opcode) for opcode in opcodes)]
    assert untested == []
