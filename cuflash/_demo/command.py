"""``python -m cuflash demo``: load the model and do what the command line says."""

from __future__ import annotations

from argparse import Namespace

from threadpoolctl import threadpool_limits

from cuflash._demo import DemoError
from cuflash._demo.chat import chat
from cuflash._demo.compare import compare
from cuflash._demo.model import load_model

DEFAULT_TOKENS, DEFAULT_CHAT_TOKENS = 512, 160


def run(arguments: Namespace) -> int:
    """Run the demo and return the exit code.

    Raises
    ------
    DemoError
        If the weights cannot be read, or the text would be longer than the model's context.
    """
    try:
        model = load_model(arguments.weights)
    except (OSError, ValueError) as error:
        raise DemoError(f"--weights: {error}") from None
    # The matrices are small: on a busy machine BLAS threads that wait for each other made it 5 times slower.
    with threadpool_limits(1, "blas"):
        if arguments.chat:
            return chat(model, arguments, DEFAULT_CHAT_TOKENS if arguments.tokens is None else arguments.tokens)
        return compare(model, arguments, DEFAULT_TOKENS if arguments.tokens is None else arguments.tokens)
