"""The house's own rules, read from the sources: who imports whom, sizes, and what `import cuflash` costs."""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cuflash

PACKAGE = Path(cuflash.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A module imports from lower levels and from its own folder only.
LEVELS = [
    {"errors"},
    {"masks", "_bias", "_blas", "_device", "_pages", "_params", "_sources"},
    {"_problem"},
    {"_tuning", "_lengths"},
    {"_configs"},
    {"_kernels"},
    {"_plan", "_gpu_plan", "reference"},
    {"_gpu_decode_plan"},
    {"_gpu_forward_plan"},
    {"_runtime"},
    {"_numpy", "_cuda"},
    {"_dispatch"},
    {"_device_cache"},
    {"_storage"},
    {"_attention", "kv_cache", "paged_kv_cache", "testing"},
    {"_decoding", "_varlen"},
    {"_tools", "_warmup"},
    {"__init__"},
    {"_bench"},
    {"_demo"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

# The one import upwards, inside a function: the version that show_config prints.
UPWARDS = {("_tools", "__init__")}


def dotted(path):
    """A file as (folder or module, ..., module) below cuflash."""
    return path.relative_to(PACKAGE).with_suffix("").parts


MODULES = {dotted(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def imported(module):
    """Every module of cuflash that a file imports anywhere, as in `dotted`."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            names = [[*node.module.split("."), alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == "cuflash":
                yield resolve(tuple(name[1:]))


def resolve(name):
    """The file that an imported name lives in."""
    while name:
        for module in (name, (*name, "__init__")):
            if module in MODULES:
                return module
        name = name[:-1]
    return ("__init__",)


def test_every_module_has_its_level():
    assert {module[0] for module in MODULES} == set(LEVEL)


@pytest.mark.parametrize("module", MODULES, ids=".".join)
def test_a_module_imports_from_lower_levels_only(module):
    for other in imported(module):
        if other[0] == module[0] or (module[0], other[0]) in UPWARDS:
            continue
        assert LEVEL[other[0]] < LEVEL[module[0]], f"{'.'.join(module)} imports {'.'.join(other)}"


def test_no_two_modules_import_each_other():
    graph = {module: {other for other in imported(module) if other != module} for module in MODULES}
    graph[("_tools",)].discard(("__init__",))
    for module in graph:  # importing a module of a folder runs the folder's own file first, which imports the others
        if module[-1] != "__init__":
            graph[module].discard((*module[:-1], "__init__"))
    assert tuple(graphlib.TopologicalSorter(graph).static_order())


def test_no_backend_knows_the_reference():
    users = {module[0] for module in MODULES if any(other[0] == "reference" for other in imported(module))}
    assert users <= {"_tools", "testing", "_bench", "_demo", "reference"}


def test_only_the_command_line_knows_the_demo():
    assert {module[0] for module in MODULES if any(other[0] == "_demo" for other in imported(module))} <= {
        "__main__",
        "_demo",
    }


def test_the_runtime_alone_imports_cupy_and_within_functions():
    def importers(trees):
        return {module[0] for module, nodes in trees for node in nodes if "cupy" in names_imported(node)}

    assert importers((module, ast.walk(tree)) for module, tree in MODULES.items()) == {"_runtime"}
    assert importers((module, tree.body) for module, tree in MODULES.items()) == set()


def names_imported(node):
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) and node.module else set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: ".".join(dotted(path)))
def test_a_module_opens_with_prose_and_stays_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert ast.get_docstring(MODULES[dotted(path)])


def code_lines(function):
    """Lines of a function without its docstring."""
    first = function.body[0]
    text = first if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) else None
    docstring = text.end_lineno - text.lineno + 1 if text is not None and isinstance(text.value.value, str) else 0
    return function.end_lineno - function.lineno + 1 - docstring


@pytest.mark.parametrize("module", MODULES, ids=".".join)
def test_a_function_stays_short(module):
    functions = [node for node in ast.walk(MODULES[module]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert {node.name: code_lines(node) for node in functions if code_lines(node) > 60} == {}


def run_python(code):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_importing_cuflash_imports_numpy_alone():
    """No other package, and none of the dependencies that are loaded when first needed."""
    code = (
        "import sys, numpy; before = set(sys.modules); import cuflash; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    assert run_python(code).split() == ["cuflash"]


@pytest.mark.alone
def test_importing_cuflash_is_fast():
    """As processor time, the best of three, no longer than NumPy's own import: 0.15 s where it was measured."""
    code = (
        "import time; times = [time.process_time()]; import numpy; times.append(time.process_time()); import cuflash; "
        "times.append(time.process_time()); print(*times)"
    )
    runs = [[float(word) for word in run_python(code).split()] for _ in range(3)]
    assert min(end - middle for _, middle, end in runs) < min(middle - start for start, middle, _ in runs)


def test_public_names_exist():
    for name in cuflash.__all__:
        assert getattr(cuflash, name) is not None
    assert cuflash.reference.__name__ == "cuflash.reference"
    assert cuflash.testing.__name__ == "cuflash.testing"
    with pytest.raises(AttributeError, match="no attribute 'flash'"):
        cuflash.flash  # noqa: B018
