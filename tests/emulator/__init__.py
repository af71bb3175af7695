"""Runs the PTX that NVRTC makes of the kernels on the CPU: `ptx` translates it to C++, `machine` executes that."""
