"""Special registers: what each is in C++. Those that are not here (%envreg, %pm, ...) are refused.

The machine has one multiprocessor and no clusters: every block is a cluster of its own.
"""


def _special_registers() -> dict[str, str]:
    registers = {
        "%laneid": "machine::registers->laneid",
        "%warpid": "machine::registers->warpid",
        "%nwarpid": "warps_of_block()",
        "%smid": "0u",
        "%nsmid": "1u",
        "%gridid": "0ull",
        "%lanemask_eq": "(1u << machine::registers->laneid)",
        "%lanemask_le": "((2u << machine::registers->laneid) - 1)",
        "%lanemask_lt": "((1u << machine::registers->laneid) - 1)",
        "%lanemask_ge": "(~0u << machine::registers->laneid)",
        "%lanemask_gt": "(~1u << machine::registers->laneid)",
        "%clock": "(u32)clock_ticks()",
        "%clock_hi": "(u32)(clock_ticks() >> 32)",
        "%clock64": "clock_ticks()",
        "%globaltimer": "clock_ticks()",
        "%globaltimer_lo": "(u32)clock_ticks()",
        "%globaltimer_hi": "(u32)(clock_ticks() >> 32)",
        "%total_smem_size": "machine::shared_bytes()",
        "%dynamic_smem_size": "(machine::shared_bytes() - static_shared_bytes)",
        "%is_explicit_cluster": "0u",
        "%cluster_ctarank": "0u",
        "%cluster_nctarank": "1u",
        "WARP_SZ": "32u",
    }
    for axis in "xyz":
        registers[f"%tid.{axis}"] = f"machine::registers->tid.{axis}"
        registers[f"%ctaid.{axis}"] = f"machine::registers->ctaid.{axis}"
        registers[f"%ntid.{axis}"] = f"machine::ntid.{axis}"
        registers[f"%nctaid.{axis}"] = f"machine::nctaid.{axis}"
        registers[f"%cluster_ctaid.{axis}"] = "0u"
        registers[f"%cluster_nctaid.{axis}"] = "1u"
        registers[f"%clusterid.{axis}"] = f"machine::registers->ctaid.{axis}"
        registers[f"%nclusterid.{axis}"] = f"machine::nctaid.{axis}"
    return registers


SPECIAL_REGISTERS = _special_registers()
