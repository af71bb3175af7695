"""The command line: ``python -m cuflash info | selftest | warmup | demo``."""

from __future__ import annotations

import argparse
import math
import os
import sys

import cuflash

INTERRUPTED, PIPE_CLOSED = 130, 141  # what a shell reports of a program ended by SIGINT, SIGPIPE


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return the exit code: 0, 1 if a check failed, 2 for a wrong request, 130 after Ctrl-C."""
    parser = _parser()
    arguments = parser.parse_args(argv)
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
    warmup = commands.add_parser("warmup", help="prepare what the first call would otherwise prepare; nothing on NumPy")
    warmup.set_defaults(run=_warmup)

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
    demo.set_defaults(run=_demo, parser=demo)
    return parser


def _info(arguments: argparse.Namespace) -> int:
    cuflash.show_config()
    return 0


def _selftest(arguments: argparse.Namespace) -> int:
    return 0 if cuflash.selftest() else 1


def _warmup(arguments: argparse.Namespace) -> int:
    cuflash.warmup()
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
