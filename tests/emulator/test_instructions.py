"""Every instruction form of one thread against the manual's definition (`manual/`), on edges and random values.

All cases of a family are inline assembly of one kernel: NVRTC makes a cubin of it, so ptxas has accepted each of them.
"""

import pytest

from emulator.cuda import cuda_kernels
from emulator.manual import blackwell, conversions, floats, halves, integers, logic, memory, probe
from emulator.small_kernels import Array

MODULES = (integers, logic, floats, halves, conversions, memory, blackwell)
FAMILIES = {module.__name__.split(".")[-1]: module.CASES for module in MODULES}


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_instructions_do_what_the_manual_says(pytestconfig, family):
    cases = FAMILIES[family]
    kernels = cuda_kernels(pytestconfig, probe.source(cases), "100a" if family == "blackwell" else "90a")
    source_rows, result_rows = probe.rows(cases)
    given = Array("in", 8 * source_rows * probe.SAMPLES, probe.inputs(cases))
    out = Array("out", 8 * result_rows * probe.SAMPLES)
    outcome = kernels.run("probe", given, out, block=probe.SAMPLES)
    assert outcome.report == ""
    wrong = probe.mismatches(cases, out.view("uint64").reshape(result_rows, probe.SAMPLES))
    given.destroy()
    out.destroy()
    assert not wrong, "\n".join(wrong)
