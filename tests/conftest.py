"""What the tests of every backend share: the backend itself, random operands, and the check against the reference.

A test body sees a backend through two fixtures only: `backend` moves arrays there and back, `check` calls a function on
it and holds each result against the float64 reference by the two-sided rule of `cuflash.testing.assert_accurate`.
What TEST_LEVEL=1|2|3 chooses is in levels.py.
"""

import os
from types import SimpleNamespace

import backends
import levels
import numpy as np
import pytest
import recorder as recorders
import sharing
from backends import host
from hypothesis import Phase, settings
from levels import TEST_LEVEL
from problems import OPTIONS, PAIRS, VIEWS, any_problem, make_option

import cuflash
from cuflash import reference
from cuflash.testing import assert_accurate

settings.register_profile(
    "cuflash",
    max_examples={1: 100, 2: 300}.get(TEST_LEVEL, 2000),
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
settings.load_profile("cuflash")

left_out = []  # tests that are left to other levels


def pytest_addoption(parser):
    parser.addoption("--beyond", type=int, help="leave out what a run of this TEST_LEVEL has run")


def pytest_configure(config):
    for mark in levels.MARKS:
        config.addinivalue_line("markers", mark)
    if sharing.REPORTS in os.environ:
        config.pluginmanager.register(sharing.Helping(config))
    os.environ.setdefault("CUFLASH_CACHE_DIR", str(config.cache.mkdir("kernels")))  # what is compiled, by content


def pytest_collection_modifyitems(config, items):
    everything, level = list(items), config.getoption("beyond")
    items[:] = levels.chosen(items, TEST_LEVEL) if level is None else levels.beyond(items, level)
    left_out.extend(set(everything) - set(items))
    config.hook.pytest_deselected(items=left_out)


def pytest_report_collectionfinish():
    return f"{len(left_out)} tests are left to other values of TEST_LEVEL" if left_out else []


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    return sharing.run(session) if sharing.wanted(session) else None


@pytest.fixture(scope="session", params=backends.names())
def backend(request):
    """Where the test runs."""
    return backends.make(request.param, str(request.config.cache.mkdir("emulator")))


@pytest.fixture(params=list(recorders.KINDS))
def recorder(request, monkeypatch):
    """What arrays of either kind are computed by: it launches nothing."""
    return recorders.install(monkeypatch, kind=request.param)


@pytest.fixture
def stand_in(monkeypatch):
    """The same where arrays have to be copied or converted, which CuPy does on a GPU."""
    return recorders.install(monkeypatch)


@pytest.fixture(params=["float16", "bfloat16", "float32", "float64"])
def dtype(request):
    """Each of the four dtypes."""
    return named_dtype(request.param)


def named_dtype(name):
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes")
    return np.dtype(name)


@pytest.fixture(scope="session")
def test_level():
    """How many minutes may be spent: 1, 2 or 3."""
    return TEST_LEVEL


@pytest.fixture(scope="session")
def normal():
    """`normal(*shape, dtype=, seed=)`: standard-normal numbers, the same ones for the same arguments."""

    def make(*shape, dtype="float32", seed=0):
        rng = np.random.default_rng([seed, *shape])
        return rng.standard_normal(shape).astype(dtype)

    return make


@pytest.fixture(scope="session")
def qkv(normal):
    """`qkv(b, hq, hk, lq, lk, d, dv=d, ...)`: operands in layout bhld, without a batch axis if b is None."""

    def make(b, hq, hk, lq, lk, d, dv=None, dtype="float32", seed=0):
        batch = () if b is None else (b,)
        shapes = ((hq, lq, d), (hk, lk, d), (hk, lk, d if dv is None else dv))
        return [normal(*batch, *shape, dtype=dtype, seed=10 * seed + i) for i, shape in enumerate(shapes)]

    return make


def exact_arithmetic(dtype):
    """The arithmetic that counts as exact for a dtype."""
    if dtype != np.float64:
        return np.float64
    if np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps:
        pytest.skip("longdouble is no wider than float64 here, so float64 has no yardstick")
    return np.longdouble


def two_sided(found, function, dtype, *args, **options):
    """Hold results against the reference by the two-sided rule, evaluated step by step in `dtype`; None stays None.

    The largest of a few errors is a matter of luck, so under 128 numbers (sinks, say) 8 times that error passes.
    """
    exact = as_tuple(function(*args, **options, dtype=exact_arithmetic(dtype)))
    stepwise = as_tuple(function(*args, **options, dtype=dtype))
    for one, right, rough in zip(found, exact, stepwise, strict=True):
        assert (one is None) == (right is None)
        if one is not None:
            assert_accurate(one, right, rough, factor=2 if right.size >= 128 else 8)


def same_numbers(found, function, dtype, *args, **options):
    """For tiny float64 problems, where two roundings may differ by any factor: equal but for 1e-11."""
    assert dtype == np.float64
    for one, right in zip(found, as_tuple(function(*args, **options)), strict=True):
        assert (one is None) == (right is None)
        if one is not None:
            assert one.shape == right.shape
            np.testing.assert_allclose(one, right, rtol=1e-11, atol=1e-11)


def as_tuple(results):
    return results if isinstance(results, tuple) else (results,)


class Check:
    """Calls a function on a backend, holds its results against the reference, and gives them back as NumPy arrays.

    `views` names the order of memory in which q, k and v come (and dout, as q does); see VIEWS.
    """

    def __init__(self, backend, hold):
        self.backend, self.hold = backend, hold

    def move(self, arrays, views):
        """Arrays on the backend, each in its order of memory."""
        laid_out = [VIEWS[name] for name in ([views] * len(arrays) if isinstance(views, str) else views)]
        return [view(self.backend.asarray(lay(x))) for x, (lay, view) in zip(arrays, laid_out, strict=True)]

    def attention(self, q, k, v, /, views="plain", **options):
        """`cuflash.attention`: out and lse."""
        moved, moved_options = self.move((q, k, v), views), self.backend.give(options)
        out, lse = cuflash.attention(*moved, return_lse=True, **moved_options)
        out, lse = self.backend.to_numpy(out), self.backend.to_numpy(lse)
        assert out.dtype == q.dtype
        if q.dtype == np.float32 and q.shape[-2] <= 8 and self.backend.name != "numpy":  # without lse by another kernel
            alone = self.backend.to_numpy(cuflash.attention(*moved, **moved_options))
            self.hold((alone,), reference.attention, q.dtype, q, k, v, **options)
        assert lse.dtype == (np.float64 if q.dtype == np.float64 else np.float32)
        self.hold((out, lse), reference.attention, q.dtype, q, k, v, return_lse=True, **options)
        return out, lse

    def backward(self, dout, q, k, v, /, views="plain", dlse=None, **options):
        """`cuflash.attention_backward` on what `cuflash.attention` returns: dq, dk, dv, dbias, dsinks."""
        views = [views] * 3 if isinstance(views, str) else views
        moved, moved_options = self.move((dout, q, k, v), (views[0], *views)), self.backend.give(options)
        results = cuflash.attention(*moved[1:], return_lse=True, **moved_options)
        moved_dlse = None if dlse is None else self.backend.asarray(dlse)
        grads = cuflash.attention_backward(*moved, *results, dlse=moved_dlse, **moved_options)
        found = []
        operands = (q, k, v, options.get("bias"), options.get("sinks"))
        for name, grad, operand in zip(grads._fields, grads, operands, strict=True):
            found.append(grad if grad is None else self.backend.to_numpy(grad))
            if isinstance(operand, np.ndarray):
                assert (name, found[-1].shape, found[-1].dtype) == (name, operand.shape, operand.dtype)
        self.hold(found, reference.attention_backward, q.dtype, dout, q, k, v, dlse=dlse, **options)
        return cuflash.Gradients(*found)

    def weights(self, q, k, /, **options):
        """`cuflash.attention_weights`."""
        weights = cuflash.attention_weights(*self.move((q, k), "plain"), **self.backend.give(options))
        weights = self.backend.to_numpy(weights)
        assert weights.dtype == q.dtype
        self.hold([weights], reference.attention_weights, q.dtype, q, k, **options)
        return weights

    def decode(self, q, cache, /, splits=None, seqs=None, **options):
        """`cuflash.decode` over a cache on the backend: out and lse. Rows are named on the host."""
        moved = self.backend.give(options)
        out, lse = cuflash.decode(self.backend.asarray(q), cache, seqs=seqs, splits=splits, return_lse=True, **moved)
        out, lse = self.backend.to_numpy(out), self.backend.to_numpy(lse)
        assert out.dtype == q.dtype
        assert out.shape == (*q.shape[:-1], cache.value_dim)
        self.hold((out, lse), reference.decode, q.dtype, q, on_host(cache), seqs=seqs, return_lse=True, **options)
        return out, lse


def on_host(cache):
    """What the reference reads of a cache."""
    names = ("k", "v", "lengths", "k_scale", "v_scale", "page_table")
    arrays = {name: host(getattr(cache, name)) for name in names if getattr(cache, name) is not None}
    arrays |= {name: arrays[name].view(cache.dtype) for name in "kv"}  # a device keeps float8 as bytes
    order = {"seqs": cache.seqs} if "page_table" in arrays else {}
    return SimpleNamespace(**arrays, **order)


@pytest.fixture(scope="session")
def check(backend):
    """The check against the reference on this backend, by the two-sided rule."""
    return Check(backend, two_sided)


@pytest.fixture(scope="session")
def check_same(backend):
    """The check against the reference on this backend for tiny float64 problems."""
    return Check(backend, same_numbers)


@pytest.fixture(scope="session")
def options_of():
    """`options_of(names, b, hq, lq, lk, dtype)`: the named options together."""

    def make(names, b, hq, lq, lk, dtype):
        return {key: value for name in names for key, value in make_option(name, b, hq, lq, lk, dtype).items()}

    return make


@pytest.fixture(params=OPTIONS)
def option(request):
    """The name of each option alone."""
    return request.param


@pytest.fixture(params=PAIRS, ids=" and ".join)
def option_pair(request):
    """The names of each two options."""
    return request.param


@pytest.fixture(params=list(VIEWS))
def view(request):
    """The name of each order of memory."""
    return request.param


@pytest.fixture(scope="session")
def problems():
    """The strategy of all problems: (q, k, v), their orders of memory, options, and the kind of tiles."""
    return any_problem()


@pytest.fixture(scope="session")
def assert_close():
    """`assert_close(a, b, ulps=)`: equal up to a few units in the last place of the largest number, for identities."""

    def compare(actual, expected, ulps=32):
        assert actual.shape == expected.shape
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(actual[~finite], expected[~finite])
        eps = np.finfo(actual.dtype).eps
        error = np.abs(actual[finite] - expected[finite]).max(initial=0)
        assert error <= ulps * eps * max(np.abs(expected[finite]).max(initial=0), 1), error

    return compare


@pytest.fixture(scope="session")
def make_cache(backend):
    """`make_cache(k, v, lengths, capacity=, dtype=)`: a cache whose every row beyond its length is NaN."""

    def make(k, v, lengths, capacity=None, dtype=None):
        b, hk, length, d = k.shape
        sizes = (b, capacity or length, hk, d)
        cache = cuflash.KVCache(*sizes, value_dim=v.shape[-1], dtype=dtype or k.dtype, xp=backend.xp)
        poison(cache)
        cache.append(backend.asarray(k), backend.asarray(v), lengths=[int(n) for n in lengths])
        return cache

    return make


def poison(cache):
    """NaN wherever a cache keeps numbers; the codes of a quantised one are whatever, under a scale of NaN."""
    for codes, scale in ((cache.k, cache.k_scale), (cache.v, cache.v_scale)):
        if scale is None:
            codes[...] = np.nan
        else:
            codes.view(np.int8)[...] = 0x7F
            scale[...] = np.nan


@pytest.fixture(scope="session")
def numbers(normal):
    """`numbers(b, l, seed=)`: what `tokens` with the same arguments holds."""
    return lambda b, l, seed=0: normal(b, 2, l, 3, seed=seed)


@pytest.fixture(scope="session")
def tokens(backend, numbers):
    """`tokens(b, l, seed=)`: keys (b, 2, l, 3) for a paged cache that are the values as well."""
    return lambda b, l, seed=0: backend.asarray(numbers(b, l, seed))


@pytest.fixture(scope="session")
def filled(backend, tokens):
    """`filled(pages, page_size, lengths, dtype=)`: a paged cache with sequences of these lengths, of `tokens`."""

    def make(pages, page_size, lengths=(), dtype="float32"):
        cache = cuflash.PagedKVCache(pages, page_size, 2, 3, dtype=dtype, xp=backend.xp)
        if lengths:
            seqs = [cache.add() for _ in lengths]
            new = tokens(len(lengths), max(lengths))
            cache.append(new, new, seqs=seqs, lengths=list(lengths))
        return cache

    return make


@pytest.fixture(scope="session")
def make_paged(backend):
    """`make_paged(k, v, lengths, page_size=5, dtype=)`: pages in no order, NaN in all that no sequence fills."""

    def make(k, v, lengths, page_size=5, dtype=None):
        _, hk, length, d = k.shape
        pages = sum(-(-int(n) // page_size) for n in lengths) + 2
        sizes = (pages, page_size, hk, d)
        cache = cuflash.PagedKVCache(*sizes, value_dim=v.shape[-1], dtype=dtype or k.dtype, xp=backend.xp)
        poison(cache)
        single = [cache.add() for _ in range(pages)]
        for seq in single:
            cache.reserve(seq, 1)
        for seq in np.random.default_rng(pages).permutation(single).tolist():
            cache.free(seq)
        seqs = [cache.add() for _ in lengths]
        for start in range(0, length, 2 * page_size + 1):  # so that the sequences' pages alternate
            part = [backend.asarray(x[:, :, start : start + 2 * page_size + 1]) for x in (k, v)]
            counts = np.clip(np.array(lengths, int) - start, 0, part[0].shape[2])
            cache.append(*part, seqs=seqs, lengths=counts.tolist())
        return cache

    return make


@pytest.fixture(scope="session")
def same_bytes():
    """`same_bytes(a, b)`: equal bit by bit, NaN and signed zeros included."""

    def compare(one, other):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.tobytes() == other.tobytes()

    return compare
