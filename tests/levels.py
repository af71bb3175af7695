"""Which tests a TEST_LEVEL runs: 1 for a newcomer, 2 what must pass before a change lands, 3 all there is.

Levels 1 and 2 are samples of what takes long: tests on the emulator, planted bugs, and (in test_compile.py) variants of
kernels for an architecture. A sample follows from names; that of level 2 shows every value of every parameter.
"""

import functools
import hashlib
import itertools
import os

from mutants import MUTANTS

TEST_LEVEL = int(os.environ.get("TEST_LEVEL", "1"))
RARE = {"bfloat16", "float64"}  # dtypes that level 1 leaves, on the emulator, where there are others
MARKS = (
    "alone: measures time, so a run of several processes has no other going",
    "pairs: at TEST_LEVEL=2 the emulator runs each two parameter values together",
    "long: takes some 10 s, on the emulator if that is a backend, and runs from TEST_LEVEL=2 on",
    "grows: does more at TEST_LEVEL=2 than at 1",
)


def chosen(items, level):
    """The tests to run at a level.

    Of a test function's cases on the emulator those are kept that show a value of some parameter for the first time, in
    an order that follows from their names and mixes them; of those marked `pairs`, two values together. What one
    `parametrize` gives several arguments counts as one value. Level 1 keeps one of them, few of the planted bugs, and
    nothing that is `long`.
    """
    left = set()
    if level < 3:
        left.update(_repeated(filter(on_emulator, items)))
    if level == 1:
        left.update(item for item in items if _long(item) or _left_bug(item))
        left.update(_further(item for item in items if on_emulator(item) and item not in left))
    return [item for item in items if item not in left]


def _repeated(emulated):
    """Cases that show nothing new."""
    seen = set()
    for item in sorted(emulated, key=_mixed):
        values = set(shown(item))
        if values <= seen:
            yield item
        seen |= values


def _further(emulated):
    """All but one case of each test, one of a common dtype if there is any."""
    tests = set()
    for item in sorted(emulated, key=lambda item: (_rare(item), _mixed(item))):
        test = test_of(item)
        if test in tests:
            yield item
        tests.add(test)


def _rare(item):
    """Whether a parameter is the name of a rare dtype."""
    return any(isinstance(value, str) and value in RARE for value in values_of(item).values())


def beyond(items, level):
    """Of chosen tests those that a lower level does not run as they are."""
    before = set(chosen(items, level))
    return [item for item in chosen(items, TEST_LEVEL) if item not in before or grows(item)]


def grows(item):
    """Whether a test does more at a higher level: random examples are more, too."""
    random = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
    return random or item.get_closest_marker("grows") is not None


def test_of(item):
    """What its function's cases have in common."""
    return item.path, item.originalname


def shown(item):
    """The test function with each of its parameters, those of one `parametrize` as one, or with pairs of these."""
    values = values_of(item)
    groups = [mark.args[0] for mark in item.iter_markers("parametrize")]
    groups = [tuple(one.replace(" ", "").split(",")) if isinstance(one, str) else tuple(one) for one in groups]
    groups += [(name,) for name in values if not any(name in names for names in groups)]
    named = sorted((names, *(id(values[name]) for name in names)) for names in groups if names != ("backend",))
    together = 2 if item.get_closest_marker("pairs") and len(named) > 1 else 1
    return [(test_of(item), *some) for some in (*itertools.combinations(named, together), ())]


def _long(item):
    """Marked so, and not of NumPy or a GPU, for which it takes no time."""
    return item.get_closest_marker("long") is not None and values_of(item).get("backend", "emulator") == "emulator"


def _left_bug(item):
    """Whether level 1 leaves this out: a planted bug, or the probe of such bugs alone."""
    values = values_of(item) if item.path.name == "test_mutants.py" else {}
    probe, mutant = values.get("probe"), values.get("mutant")
    return (probe and probe not in {one.probe for one in few_bugs()}) or (mutant and mutant not in few_bugs())


@functools.cache
def few_bugs():
    """The first planted bug of each file, and the first that is caught in each way."""
    first = {}
    for mutant in MUTANTS:
        first.setdefault(mutant.file, mutant)
        first.setdefault(mutant.caught, mutant)
    return set(first.values())


def on_emulator(item):
    return values_of(item).get("backend") == "emulator"


def values_of(item):
    """A test's parameters."""
    return item.callspec.params if hasattr(item, "callspec") else {}


def _mixed(item):
    """A place in the order that has nothing to do with that of the parameters."""
    return hashlib.sha256(item.nodeid.encode()).hexdigest()
