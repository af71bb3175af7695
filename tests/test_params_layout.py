"""The NumPy dtypes of kernel parameters against the C++ structs: NVRTC compares sizes, offsets and kinds of numbers."""

import itertools
import re
import struct
import timeit

import numpy as np
import pytest
from kernels import need_nvrtc

from cuflash import _kernels, _params, _sources
from cuflash._params import Struct

HEADERS = ("attention/params.cuh", "attention/cache_params.cuh")
ARGUMENTS = {
    "T": ("float16", "bfloat16", "float", "double"),
    "Part": ("float16", "bfloat16", "float", "double"),
    "A": ("float", "double"),
    "Stored": ("float16", "bfloat16", "float", "double", "int8_code", "float8_e4m3fn"),
}

# `KIND<type>` is what NumPy calls a number; pointers are u8, and an array is as its elements.
KINDS = """
template <typename T> constexpr auto KIND = 0;
template <typename T> constexpr auto KIND<T&> = KIND<T>;
template <typename T> constexpr auto KIND<T*> = 'u8';
template <typename T, int N> constexpr auto KIND<T[N]> = KIND<T>;
template <> constexpr auto KIND<int32_t> = 'i4';
template <> constexpr auto KIND<int64_t> = 'i8';
template <> constexpr auto KIND<uint32_t> = 'u4';
template <> constexpr auto KIND<float> = 'f4';
template <> constexpr auto KIND<double> = 'f8';
template <> constexpr auto KIND<Dtype> = 'i4';
template <> constexpr auto KIND<NumberKind> = 'i4';
"""


def fields(dtype, prefix=""):
    """Every field as C++ names it, at any depth, with its offset and dtype."""
    for name in dtype.names:
        field, offset = dtype.fields[name][:2]
        yield prefix + name, offset, field
        base, shape = field.subdtype or (field, ())
        if base.names:
            inner = fields(base, f"{prefix}{name}{'[0]' if shape else ''}.")
            yield from ((path, offset + further, one) for path, further, one in inner)


def assertions(dtype, cpp):
    """C++ that compiles if the type `cpp` is laid out as the dtype."""
    yield f'static_assert(sizeof({cpp}) == {dtype.itemsize}, "size of {cpp}");'
    for path, offset, field in fields(dtype):
        member = f"static_cast<{cpp}*>(nullptr)->{path}"
        yield f'static_assert(__builtin_offsetof({cpp}, {path}) == {offset}, "offset of {cpp}::{path}");'
        yield f'static_assert(sizeof({member}) == {field.itemsize}, "size of {cpp}::{path}");'
        base = (field.subdtype or (field,))[0]
        if not base.names:
            yield f"static_assert(KIND<decltype({member})> == '{base.str[1:]}', \"kind of {cpp}::{path}\");"


def refusals(lines, include=HEADERS):
    """NVRTC's errors in lines of C++ within the namespace of the kernels."""
    from cupy.cuda import nvrtc

    root = _sources.folder()
    includes = "".join(f'#include "{header}"\n' for header in (*HEADERS, *include))
    text = f"{includes}namespace cf {{{KINDS}{chr(10).join(lines)}\n}}\n"
    program = nvrtc.createProgram(text, str(root / "layout.cu"), (), ())
    try:
        nvrtc.compileProgram(program, ("--std=c++20", f"-I{root}"))
        return []
    except nvrtc.NVRTCError:
        return re.findall(r"error: (.*)", nvrtc.getProgramLog(program))
    finally:
        nvrtc.destroyProgram(program)


def cpp_types(name):
    """A struct's type with each choice of template arguments."""
    template, _, arguments = name.rstrip(">").partition("<")
    if not arguments:
        return [name]
    choices = itertools.product(*(ARGUMENTS[argument] for argument in arguments.split(", ")))
    return [f"{template}<{', '.join(choice)}>" for choice in choices]


@pytest.mark.parametrize("one", _params.STRUCTS, ids=lambda one: one.name)
def test_a_struct_is_laid_out_as_in_cpp(one):
    need_nvrtc()
    checks = [f"using S{i} = {cpp};" for i, cpp in enumerate(cpp_types(one.name))]
    checks += [line for i in range(len(checks)) for line in assertions(one.dtype, f"S{i}")]
    assert refusals(checks) == []


def test_every_struct_of_the_headers_is_described():
    texts = [(_sources.folder() / header).read_text(encoding="utf-8") for header in HEADERS]
    in_cpp = {name for text in texts for name in re.findall(r"^(?:template <.*> )?struct (\w+)", text, re.M)}
    assert in_cpp == {one.name.partition("<")[0] for one in _params.STRUCTS}


@pytest.mark.parametrize("name", _kernels.KERNELS)
def test_a_kernel_takes_the_struct_of_its_line(name):
    need_nvrtc()
    kernel = _kernels.KERNELS[name]
    template, _, arguments = kernel.params.name.partition("<")
    checks = ["template <typename> constexpr bool RIGHT = false;"]
    if arguments:
        checks.append(f"template <typename... A> constexpr bool RIGHT<{template}<A...>> = true;")
    else:
        checks.append(f"template <> constexpr bool RIGHT<{template}> = true;")
    variants = [_kernels.instance(variant) for variant in _kernels.variants() if variant.kernel == name]
    assert variants
    checks += [f'static_assert(RIGHT<{instance}::Params>, "{instance}");' for instance in variants]
    assert refusals(checks, [kernel.file]) == []


def test_constants_are_those_of_cpp():
    need_nvrtc()
    equal = {name: number for name, number in vars(_params).items() if isinstance(number, int)}
    assert {"BATCH_AXES", "UNSET", "FARTHEST"} < set(equal)
    for cpp, numbers in (("Dtype", _params.DTYPES), ("Codes", _params.CODES), ("NumberKind", _params.NUMBER_KINDS)):
        equal |= {f"int({cpp}::{name})": number for name, number in numbers.items()}
    spelled = {name: "INT64_LEAST" if number == -(2**63) else number for name, number in equal.items()}
    assert refusals([f'static_assert({name} == {value}, "{name}");' for name, value in spelled.items()]) == []


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"head": "i8", "batch": ("i8", 4)}, "offset of Strides::head"),
        ({"batch": ("i8", 3)}, "size of Strides"),
        ({"row": "f8"}, "kind of Strides::row"),
        ({"row": "u8"}, "kind of Strides::row"),
        ({"col": "i4"}, "size of Strides::col"),
        ({"rows": "i8"}, 'has no member "rows"'),
    ],
)
def test_a_wrong_description_is_told(wrong, told):
    need_nvrtc()
    right = {"batch": ("i8", 4), "head": "i8", "row": "i8", "col": "i8"}
    described = Struct("Strides", **(wrong | {key: kind for key, kind in right.items() if key not in wrong}))
    assert any(told in line for line in refusals(list(assertions(described.dtype, "Strides"))))


# Packing

INNER = Struct("Inner", a="i4", b=("f8", 2))
OUTER = Struct("Outer", flag="i4", inner=INNER, twice=(INNER, 2), from_="u8", last="f4")


def test_packing_fills_every_field():
    inner = INNER.values(a=-1, b=(0.5, np.inf))
    packed = OUTER.pack(flag=7, inner=inner, twice=(*inner, 3, 4.0, 5.0), from_=2**64 - 1, last=0.1)
    assert packed.shape == () and packed.dtype == np.dtype(f"V{OUTER.dtype.itemsize}")
    found = OUTER.unpack(packed)
    assert (found["flag"], found["inner"]["a"], found["from"]) == (7, -1, 2**64 - 1)
    assert found["last"] == np.float32(0.1)
    assert found["inner"]["b"].tolist() == [0.5, np.inf]
    assert found["twice"]["a"].tolist() == [-1, 3]
    assert found["twice"]["b"].tolist() == [[0.5, np.inf], [4, 5]]
    by_numpy = np.zeros((), OUTER.dtype)
    by_numpy[()] = (7, (-1, (0.5, np.inf)), [(-1, (0.5, np.inf)), (3, (4, 5))], 2**64 - 1, 0.1)
    assert packed.tobytes() == by_numpy.tobytes()


def test_what_is_packed_is_not_shared():
    values = {"flag": 1, "inner": (0, 0, 0), "twice": (0,) * 6, "from_": 0, "last": 0}
    first, second = OUTER.pack(**values), OUTER.pack(**values | {"flag": 2})
    assert OUTER.unpack(first)["flag"] == 1 != OUTER.unpack(second)["flag"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"flag": None}, struct.error),
        ({"inner": (1, 2)}, struct.error),
        ({"flag": 2**31}, struct.error),
        ({"unknown": 1}, TypeError),
        ({"flag": ...}, TypeError),
    ],
)
def test_wrong_fields_are_errors(change, error):
    values = {"flag": 1, "inner": (0, 0, 0), "twice": (0,) * 6, "from_": 0, "last": 0} | change
    with pytest.raises(error):
        OUTER.pack(**{name: value for name, value in values.items() if value is not ...})


def test_packing_a_launch_takes_little():
    """5 us for the largest struct of a call of attention, 112 numbers; CuPy's look at its address included."""
    seven, eight = tuple(range(7)), tuple(range(7))
    reals = (0, *seven, 2)
    arrays = dict.fromkeys(("q", "k", "v", "mask", "q_starts", "kv_starts"), 1 << 40)
    strides = dict.fromkeys(("q_strides", "k_strides", "v_strides", "mask_strides"), seven)
    options = {"bias": reals, "slopes": reals, "sinks": reals, "q_offset": eight, "kv_lengths": eight}
    sizes = dict.fromkeys(("hq", "group", "lq", "lk", "d", "dv", "q_tiles"), 64)
    rest = {"left": 0, "right": 0, "scale": 0.125, "softcap": 0.0, "batch": (1, 1, 1, 8)}

    def launch():
        problem = _params.ATTENTION.values(**arrays, **strides, **options, **rest, **sizes)
        packed = _params.FWD.pack(
            problem=problem,
            out=1 << 40,
            part_outs=0,
            out_strides=seven,
            lse=1 << 40,
            lse_strides=seven,
            sum=0,
            out_step=0,
            lse_step=0,
            parts=1,
            part_keys=64,
        )
        return packed.__array_interface__["data"][0]

    assert len(_params.ATTENTION.values(**arrays, **strides, **options, **rest, **sizes)) + 22 == 112
    assert min(timeit.repeat(launch, number=200, repeat=20)) / 200 < 5e-6 * 4
