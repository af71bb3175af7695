"""``python -m cuflash demo``: a small character-level language model on cuflash's public functions, with its weights.

`model` is the transformer, `gradients` its backward pass by hand (for ``docs/examples/train_lm.py``), `generation`
writes text with and without a cache, `compare` and `chat` are what `command` shows of it, `text` and `safetensors` read
characters and weights. README.md beside this file says where the text and the weights come from.
"""


class DemoError(Exception):
    """A request that the demo cannot meet; the message is for the user."""
