"""What a GPU gave to the probes, kept once one has run them; the emulator is compared with it ever after."""

import json
import os
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "probes.npz"
ABOUT = "about"  # of GOLDEN's members, the one that says in JSON which GPU each probe ran on


def read_golden():
    """Arrays by probe's key and field, and what is known of each key; nothing where none has been recorded."""
    if not GOLDEN.exists():
        return {}, {}
    results = {}
    with np.load(GOLDEN) as kept:
        about = json.loads(str(kept[ABOUT]))
        for member in kept.files:
            if member != ABOUT:
                key, _, field = member.partition("/")
                results.setdefault(key, {})[field] = kept[member]
    return results, about


def write_golden(results, about):
    """Keep results by key and field, with `about` by key; the file is replaced at once."""
    members = {f"{key}/{field}": array for key, fields in results.items() for field, array in fields.items()}
    unfinished = GOLDEN.with_suffix(".tmp.npz")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(unfinished, **members, **{ABOUT: np.array(json.dumps(about, sort_keys=True))})
    os.replace(unfinished, GOLDEN)
