"""ldmatrix and mma.sync: matrices of 16-bit numbers that lie spread over the lanes of a warp."""

from __future__ import annotations

from ..forms import form
from ..statement import Statement


@form("ldmatrix sync aligned m8n8 count:x1|x2|x4 [trans] space:shared::cta|shared b16")
def load_matrices(statement: Statement) -> str:
    """Two elements of each matrix for each lane; the lanes give the rows' addresses."""
    statement.expect(2)
    count = int(statement["count"][1:])
    stores = [statement.assign(item, "b32", f"t_[{place}]") for place, item in enumerate(statement.vector(0, count))]
    transposed = "true" if statement["trans"] else "false"
    call = f"machine::ldmatrix(t_, {statement.address(1, 'shared')}, {count}, {transposed}, {statement.site});"
    return f"{{ u32 t_[{count}]; {call} {' '.join(stores)} }}"


@form("mma sync aligned shape:m16n8k8|m16n8k16 row col f32 A:f16|bf16 B:f16|bf16 f32")
def multiply_matrices(statement: Statement) -> str:
    """d = a b + c, where a has 16 rows of the warp and b 8 columns."""
    statement.expect(4)
    if statement["A"] != statement["B"]:
        raise statement.refuse("operands of two formats")
    depth = int(statement["shape"].rpartition("k")[2])
    items = [statement.vector(place, count) for place, count in enumerate((4, depth // 4, depth // 8, 4))]
    a, b, c = (
        ", ".join(statement.value(item, kind) for item in items[place])
        for place, kind in ((1, "b32"), (2, "b32"), (3, "f32"))
    )
    arrays = f"f32 d_[4], c_[] = {{{c}}}; u32 a_[] = {{{a}}}, b_[] = {{{b}}};"
    bfloat = "true" if statement["A"] == "bf16" else "false"
    call = f"machine::mma_m16n8(d_, a_, b_, c_, {depth}, {bfloat}, {statement.site});"
    stores = [statement.assign(item, "f32", f"d_[{place}]") for place, item in enumerate(items[0])]
    return f"{{ {arrays} {call} {' '.join(stores)} }}"
