"""``python -m cuflash demo --chat``: you begin a verse, the model ends it; what was read before stays in the cache."""

from __future__ import annotations

import io
import sys
import time
from argparse import Namespace
from collections.abc import Iterator

import numpy as np

from cuflash._demo import DemoError
from cuflash._demo.generation import START, CachedReader, generate
from cuflash._demo.model import Model


class Conversation:
    """The text so far, as tokens, and a reader that has read all of it but what was written last.

    Parameters
    ----------
    model : Model
    reply_tokens : int
        The most tokens of one reply.
    temperature, seed
        As in `generate`; turn t draws with the seed ``seed + t``.
    """

    def __init__(self, model: Model, reply_tokens: int, temperature: float, seed: int):
        self.model, self.reply_tokens, self.temperature, self.seed = model, reply_tokens, temperature, seed
        self.reader = CachedReader(model, model.config.context)
        self.tokens: list[int] = []
        self.read_tokens = self.written_tokens = self.dropped_tokens = 0

    def turn(self, text: str) -> Iterator[str]:
        """Read `text` as the beginning of a verse and yield the characters that end it.

        Afterwards `read_tokens` and `written_tokens` say what the turn cost, and `dropped_tokens` how many of the
        oldest tokens were given up because the context was full; those that are left were then read again.
        """
        vocabulary = self.model.vocabulary
        if not self.tokens or vocabulary.decode(self.tokens[-1:]) != START:
            text = START + text
        self.tokens += vocabulary.encode(text).tolist()
        self.written_tokens = self.dropped_tokens = 0
        context = self.model.config.context
        if len(self.tokens) + self.reply_tokens > context:
            kept = min(context // 2, context - self.reply_tokens)
            self.dropped_tokens = len(self.tokens) - kept
            del self.tokens[: self.dropped_tokens]
            self.reader.forget()
        unread = np.array(self.tokens[self.reader.length :])
        self.read_tokens = len(unread)
        for step in generate(self.reader, unread, self.reply_tokens, self.temperature, self.seed):
            self.tokens.append(step.token)
            self.written_tokens += 1
            character = vocabulary.decode([step.token])
            if character == START:
                break
            yield character
        self.seed += 1


def chat(model: Model, arguments: Namespace, reply_tokens: int) -> int:
    """Talk until the end of the input; return the exit code 0."""
    context = model.config.context
    if not 0 < reply_tokens <= context // 2:
        raise DemoError(f"--tokens: a reply of the chat is 1 to {context // 2} tokens long, got {reply_tokens}")
    conversation = Conversation(model, reply_tokens, arguments.temperature, arguments.seed)
    print("Begin a verse, and the model ends it. An empty line gives it the whole verse; end with Ctrl-D.")
    for line, shown in _lines(arguments.prompt):
        text = model.vocabulary.fit(line)
        if not shown:
            print(text)
        print("model> ", end="", flush=True)
        began = time.perf_counter()
        for character in conversation.turn(text):
            print(character, end="", flush=True)
        milliseconds = 1e3 * (time.perf_counter() - began)
        print(f"\n{_costs(conversation, milliseconds)}\n", flush=True)
    return 0


def _lines(first: str | None) -> Iterator[tuple[str, bool]]:
    """Yield `first`, if given, then what is typed until the input ends; and whether the user sees it already."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    print("you> ", end="", flush=True)
    if first is not None:
        yield first, False
        print("you> ", end="", flush=True)
    while line := sys.stdin.readline() if sys.stdin else "":
        yield line.rstrip("\n"), sys.stdin.isatty()
        print("you> ", end="", flush=True)
    print()


def _costs(conversation: Conversation, milliseconds: float) -> str:
    """Say what the turn cost, and what it would have cost to read without the cache."""
    total, written = len(conversation.tokens), conversation.written_tokens
    text = (
        f"({milliseconds:.0f} ms: {conversation.read_tokens} tokens read, {written} written; "
        f"reading the whole conversation again would be {total - written} tokens; "
        f"context {total}/{conversation.model.config.context})"
    )
    if conversation.dropped_tokens:
        text += (
            f"\n(the context was full: the oldest {conversation.dropped_tokens} tokens are forgotten, "
            "and what is left was read again)"
        )
    return text
