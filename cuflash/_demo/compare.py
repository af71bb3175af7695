"""What ``python -m cuflash demo`` shows: the same text written with the cache and without, in time and memory."""

from __future__ import annotations

from argparse import Namespace

import numpy as np

from cuflash._bench.timing import peak_bytes
from cuflash._demo import DemoError
from cuflash._demo.generation import START, CachedReader, StandardReader, Step, first_difference, generate
from cuflash._demo.model import Model

DEFAULT_PROMPT = "Hear, O my son,"
TIE = 1e-4  # scores closer than this may be ranked either way by two orders of summation


def compare(model: Model, arguments: Namespace, count: int) -> int:
    """Write `count` tokens with both readers, print text and figures; return 0, or 1 where they disagree."""
    prompt = model.vocabulary.fit(DEFAULT_PROMPT if arguments.prompt is None else arguments.prompt)
    tokens = model.vocabulary.encode(START + prompt)
    if len(tokens) + count > model.config.context:
        raise DemoError(
            f"the model's context is {model.config.context} characters, one of them before the prompt, but the prompt "
            f"has {len(prompt)} and --tokens is {count}; make one of them smaller"
        )
    print(prompt, end="", flush=True)
    if count == 0:
        print("\n\nNothing to write (--tokens 0).")
        return 0

    for _ in generate(CachedReader(model, 3), tokens[:1], 3):
        pass  # the first calls load libraries and start threads, which is not what is measured
    cached = []
    for step in generate(
        CachedReader(model, len(tokens) + count), tokens, count, arguments.temperature, arguments.seed
    ):
        cached.append(step)
        print(model.vocabulary.decode([step.token]), end="", flush=True)
    print(f"\n\nwith the cache   {rates(cached, len(tokens))}")
    print("recomputed       ", end="", flush=True)
    standard = list(generate(StandardReader(model), tokens, count, arguments.temperature, arguments.seed))
    print(rates(standard, len(tokens)))
    code = report_difference(model, cached, standard)
    speed_up = sum(step.seconds for step in standard) / sum(step.seconds for step in cached)
    print(f"speed-up         {speed_up:.1f}x (one BLAS thread for both)")
    print(memory(model, tokens, cached, standard))
    return code


def rates(steps: list[Step], prompt_tokens: int) -> str:
    """Say what the steps took; the first one read the prompt."""
    seconds = sum(step.seconds for step in steps)
    return (
        f"{len(steps)} tokens in {seconds:.2f} s, {len(steps) / seconds:.0f} tokens/s "
        f"(the first, with the prompt's {prompt_tokens}: {1e3 * steps[0].seconds:.1f} ms; "
        f"the last: {1e3 * steps[-1].seconds:.1f} ms)"
    )


def report_difference(model: Model, cached: list[Step], standard: list[Step]) -> int:
    """Say whether both runs wrote the same; return 0, or 1 where they differ by more than a tie."""
    index = first_difference(cached, standard)
    if index is None:
        print(f"same text        yes: all {len(cached)} tokens are equal")
        return 0
    print(f"same text        no: they part at token {index}")
    for name, step in (("with the cache", cached[index]), ("recomputed", standard[index])):
        first, second = (ascii(model.vocabulary.decode([token])) for token in (step.token, step.other_token))
        print(f"  {name:<14} {first} {step.score:.6f}, then {second} {step.other_score:.6f}")
    if all(step.score - step.other_score <= TIE for step in (cached[index], standard[index])):
        print(f"  a tie: the two scores are within {TIE:g}, less than the order of summation may change")
        return 0
    print(f"  an error: the scores are more than {TIE:g} apart")
    return 1


def memory(model: Model, tokens: np.ndarray, cached: list[Step], standard: list[Step]) -> str:
    """Measure and describe the peak memory of both ways, above the weights.

    Tracing slows Python down, so it is done in runs of its own, which read the tokens that were written before: with
    the cache all of them one by one, its allocation included; recomputed only the whole text at once, which is the last
    and greatest of its steps.
    """

    def read_with_cache():
        reader = CachedReader(model, len(tokens) + len(cached))
        reader.read(tokens)
        for step in cached[:-1]:
            reader.read(np.array([step.token]))

    def read_again():
        StandardReader(model).read(np.array([*tokens, *(step.token for step in standard[:-1])]))

    cache_bytes = CachedReader(model, len(tokens) + len(cached)).nbytes
    with_cache, again = peak_bytes(read_with_cache), peak_bytes(read_again)
    return (
        f"peak memory      {with_cache / 1e6:.1f} MB with the cache (the cache itself: {cache_bytes / 1e6:.1f} MB), "
        f"{again / 1e6:.1f} MB recomputed: {again / with_cache:.1f}x\n"
        f"                 (allocations beyond the weights, by tracemalloc, in runs apart from the timed ones)"
    )
