"""The command line: ``python -m cuflash info | selftest | warmup | bench | demo``."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

import cuflash
from cuflash import _blas

INTERRUPTED, PIPE_CLOSED = 130, 141  # what a shell reports of a program ended by SIGINT, SIGPIPE


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return the exit code: 0, 1 if a check failed, 2 for a wrong request, 130 after Ctrl-C."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if argv is None and getattr(arguments, "wide_blas", False):
        _restart_with_wider_blas()
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print()
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; Python's own flush at exit must not complain about it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cuflash", description="Exact attention for NumPy-style arrays.")
    parser.add_argument("--version", action="version", version=f"cuflash {cuflash.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    info = commands.add_parser("info", help="versions, devices and settings, to be pasted into a bug report")
    info.set_defaults(run=_info)
    selftest = commands.add_parser("selftest", help="check the main functions against their definitions")
    selftest.set_defaults(run=_selftest)
    warmup = commands.add_parser(
        "warmup",
        help="compile the kernels that CuPy arrays will need; NumPy needs none",
        description="Compile kernels before they are needed: into the cache for this machine's GPU, or with --arch for "
        "another one, for which neither a GPU nor a driver is needed.",
    )
    warmup.add_argument("--arch", nargs="+", metavar="SM", help="compile for these instead, such as sm_90a")
    warmup.add_argument("--out", type=Path, metavar="DIR", help="a folder for the files, to be named CUFLASH_CUBIN_DIR")
    warmup.add_argument("--dtypes", nargs="+", metavar="DTYPE", help="of the arrays (all four)")
    warmup.add_argument("--head-dims", nargs="+", type=_size, metavar="D", help="the larger of d and dv (1 to 512)")
    warmup.set_defaults(run=_warmup, parser=warmup)

    bench = commands.add_parser(
        "bench",
        help="time and memory beside standard attention, and beside two published tables of the same",
        description="Tiled attention against standard attention, and decoding with split keys and a cache against "
        "standard decoding, beside published times of the same shapes. Half a minute, 1 GB of memory.",
    )
    bench.add_argument("--lengths", type=_size, nargs="+", metavar="L", help="tokens (512 1024 2048, the published)")
    bench.add_argument("--rounds", type=_size, default=5, metavar="N", help="turns of each, of which the median (5)")
    bench.add_argument("--json", type=_new_file, metavar="FILE", help="keep the tables and the machine here")
    bench.add_argument("--chart", type=_picture, metavar="FILE", help="draw them here, .svg or .png; needs matplotlib")
    _add_wide_blas(bench)
    bench.set_defaults(run=_bench, parser=bench)

    demo = commands.add_parser(
        "demo",
        help="a small language model writes with a key-value cache, and again without",
        description="A small language model, trained on the King James Bible with cuflash, continues a prompt: once "
        "with a key-value cache, once by computing everything again with standard attention. Both must write the same.",
    )
    demo.add_argument("--prompt", metavar="TEXT", help="what to continue; with --chat the first turn")
    demo.add_argument("--tokens", type=_count, metavar="N", help="characters to write (512; in a chat 160 a turn)")
    demo.add_argument("--seed", type=_count, default=0, metavar="N", help="of the draws at a temperature above 0")
    demo.add_argument("--temperature", type=_temperature, default=0.0, metavar="T", help="0, the default, is greedy")
    demo.add_argument("--chat", action="store_true", help="take turns; a turn costs its new tokens only")
    demo.add_argument("--weights", metavar="FILE", help="another model of docs/examples/train_lm.py")
    _add_wide_blas(demo)
    demo.set_defaults(run=_demo, parser=demo)
    return parser


def _add_wide_blas(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--wide-blas",
        action="store_true",
        help=f"where BLAS runs below this CPU's width, start again with {_blas.VARIABLE} set; see `info`",
    )


def _restart_with_wider_blas() -> None:
    """Where BLAS runs below the CPU's width, become the same command with the variable set that widens it.

    NumPy is loaded by the time any line of ours runs, hence a new start. Not where the variable is set already,
    whatever it says, nor where the process was not started as ``python -m cuflash``.
    """
    started_as_command = sys.orig_argv[-len(sys.argv) - 1 :] == ["-m", "cuflash", *sys.argv[1:]]
    if os.name != "posix" or not started_as_command or _blas.VARIABLE in os.environ:
        return
    width = _blas.wider(_blas.libraries(), _blas.cpu_features())
    if width:
        setting = f"{_blas.VARIABLE}={width.kernels[0]}"
        print(f"BLAS runs below this CPU's {width.text}: starting again with {setting}", file=sys.stderr, flush=True)
        environment = {**os.environ, _blas.VARIABLE: width.kernels[0]}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _info(arguments: argparse.Namespace) -> int:
    cuflash.show_config()
    return 0


def _selftest(arguments: argparse.Namespace) -> int:
    return 0 if cuflash.selftest() else 1


def _warmup(arguments: argparse.Namespace) -> int:
    try:
        cuflash.warmup(arguments.dtypes, arguments.head_dims, arch=arguments.arch, out=arguments.out)
    except cuflash.ProblemError as error:
        parser: argparse.ArgumentParser = arguments.parser
        parser.error(str(error))
    except (cuflash.CompileError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from cuflash._bench import report, seeds

    parser: argparse.ArgumentParser = arguments.parser
    if arguments.chart and not report.installed("matplotlib"):
        parser.error('--chart needs matplotlib, which the extra "bench" brings: pip install "cuflash[bench]"')
    tables = seeds.tables(arguments.lengths or seeds.LENGTHS, arguments.rounds)
    machine = report.finish(tables, arguments.json)
    if arguments.chart:
        from cuflash._bench import chart

        chart.draw(arguments.chart, machine, tables)
        print(f"wrote {arguments.chart}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from cuflash._demo import DemoError
    from cuflash._demo.command import run

    try:
        return run(arguments)
    except DemoError as error:
        parser: argparse.ArgumentParser = arguments.parser
        parser.error(str(error))


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got {text!r}")
    return int(text)


def _size(text: str) -> int:
    number = _count(text)
    if number == 0:
        raise argparse.ArgumentTypeError("expected a whole number from 1 on, got 0")
    return number


def _new_file(text: str) -> Path:
    """A file that can be written; said before anything is measured."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in a folder that exists, got {text!r}")
    return path


def _picture(text: str) -> Path:
    path = _new_file(text)
    if path.suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .svg or .png, got {text!r}")
    return path


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number from 0 on, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
