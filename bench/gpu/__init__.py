"""What `bench/validate_gpu.py` runs on a machine with a GPU.

`runner` gives stages their time, each in a process of its own, and keeps what they find; `child` is such a process;
`summary` is the text at the end. Stages are `machine` (what is here), `checks` (probes, compilation, tests, sanitizer),
`questions` (what CUDA does where no manual is clear enough), `attention` and `functions` (benchmarks). `operands` makes
and checks what is timed, `peers` are the other libraries, `triton_attention` is one of them. `every_function` is the
script that the sanitizer watches, `pytest_lines` the plugin that writes down each test when it ends.
"""
