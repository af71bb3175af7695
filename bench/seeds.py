"""The two published tables and ours: ``python bench/seeds.py [--json FILE] [--chart FILE]``.

The same as ``python -m cuflash bench``, which also works where only the wheel is installed; what a row measures is said
in `cuflash._bench.seeds`.
"""

import sys

from cuflash.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
