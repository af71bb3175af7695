"""Characters to token numbers and back."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable

import numpy as np

# What NFKD leaves alone, but a typewriter has.
PLAIN = str.maketrans({"‘": "'", "’": "'", "“": "'", "”": "'", '"': "'", "–": "-", "—": "-", "\t": " ", "\r": "\n"})


class Vocabulary:
    """The characters a model knows, in the order of their numbers.

    >>> from cuflash._demo.text import Vocabulary
    >>> vocabulary = Vocabulary(" abc")
    >>> vocabulary.encode("cab").tolist()
    [3, 1, 2]
    >>> vocabulary.fit("çâ b")
    'ca b'
    """

    def __init__(self, characters: str):
        self.characters = characters
        self._numbers = {character: number for number, character in enumerate(characters)}

    def __len__(self) -> int:
        return len(self.characters)

    def fit(self, text: str) -> str:
        """Return `text` in known characters, and say on stderr which ones could only be replaced by a space.

        Accents are dropped and typographic quotes and dashes made plain first.
        """
        plain = "".join(c for c in unicodedata.normalize("NFKD", text.translate(PLAIN)) if not unicodedata.combining(c))
        unknown = "".join(dict.fromkeys(c for c in plain if c not in self._numbers))
        if unknown:
            print(f"(the model does not know {unknown!a}: replaced by spaces)", file=sys.stderr)
        return "".join(c if c in self._numbers else " " for c in plain)

    def encode(self, text: str) -> np.ndarray:
        """Return the numbers (l,) of the characters of `text`, which must all be known."""
        return np.array([self._numbers[character] for character in text], dtype=np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of `tokens`."""
        return "".join(self.characters[token] for token in tokens)
