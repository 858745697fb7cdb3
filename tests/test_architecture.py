"""The house rules that a machine can check: who imports whom, what is never called, how long.

Read from the syntax trees, so that an import inside a function or under TYPE_CHECKING counts too.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "vip_llava"

# Part of the package -> the parts it may import besides itself. Built from below to above.
_BASE = {"errors", "regions", "images"}
_REQUEST = _BASE | {"sampling_params", "prompting"}
_CORE = _REQUEST | {"kernels", "models", "engine", "backends"}
_FACE = {"answer", "assistant", "chat"}  # what `load()` gives, in several files
_UPPER = {"training", "evaluation", "serving"}  # these never import each other
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "sampling_params": {"errors"},
    "regions": {"errors"},
    "images": {"errors"},
    "prompting": _BASE | {"sampling_params"},
    "kernels": set(),
    "models": _BASE | {"prompting", "kernels"},
    "engine": {"errors", "sampling_params", "kernels", "models"},
    "backends": _REQUEST | {"kernels", "models", "engine"},
    "data": _BASE | {"prompting"},
    "bench": _CORE | _FACE,
    "cli": _CORE | _FACE | _UPPER | {"data", "bench", "__init__"},
    "__init__": {"errors", "regions", "images", "assistant"},
    "__main__": {"cli"},
}
MAY_IMPORT |= dict.fromkeys(_FACE, _CORE | _FACE)
MAY_IMPORT |= dict.fromkeys(_UPPER, _CORE | _FACE | {"data"})
# The only modules that may open a connection; `models/default/fetch.py` does it by the user's pip.
NETWORK_MODULES = {"aiohttp", "ftplib", "httpx", "requests", "socket", "urllib3"}
NETWORK_MODULES |= {"http.client", "http.server", "urllib.request"}
NETWORK_DOORS = ("serving/", "evaluation/judge/endpoint.py")
UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {"os.system", "os.popen", "subprocess.getoutput", "yaml.load", "yaml.unsafe_load"}

MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 100
MAX_TRACKED_BYTES = 45_000_000
# Put together here, so that this file does not contain them.
REGISTRIES = ["pypi" + ".org", "python" + "hosted.org", "npm" + "js.org", "deb.deb" + "ian.org"]
REGISTRIES += ["pypi" + "-more", "download.py" + "torch.org", "proxy.go" + "lang.org"]
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|opt/pypi|opt/wheels|tmp/team)/")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


@functools.cache
def tracked() -> tuple[Path, ...]:
    """The files that git has, and those that it would take."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in sorted(set(result.stdout.split("\0"))) if name)
    return tuple(path for path in paths if path.is_file() and not path.is_symlink())


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import in a file: `from a import b` gives `a.b`."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += [node.module] if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("import_module"):
            named = [word.value for word in node.args[:1] if isinstance(word, ast.Constant)]
            yield from ((node.lineno, str(name)) for name in named)


def dotted(node: ast.expr) -> str:
    """`a.b.c` of such an expression, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def functions_of(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, first line and number of lines of every function in a file."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.lineno, node.end_lineno - node.lineno + 1


def test_every_part_has_its_place() -> None:
    parts = {path.relative_to(SOURCE).with_suffix("").parts[0] for path in source_files()}
    assert parts <= set(MAY_IMPORT)


def test_imports_follow_the_arrows() -> None:
    wrong = []
    for path in source_files():
        part = path.relative_to(SOURCE).with_suffix("").parts[0]
        for line, name in imports_of(path):
            names = name.split(".")
            if names[0] != "vip_llava":
                continue
            target = names[1] if len(names) > 1 else "__init__"
            if target in ("__version__", part):
                continue
            if target not in MAY_IMPORT[part]:
                wrong.append(f"{where(path, line)}: {part} may not import {name}")
    assert wrong == []


def _imported_on_load(path: Path) -> set[str]:
    """Modules of the package that importing a file loads: not those of functions or type checks."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree_of(path)):
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if lazy or (isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING")):
            skipped |= {child for child in ast.walk(node) if child is not node}
    modules = {module_of(each) for each in source_files()}
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if node not in skipped and isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return found & modules - {module_of(path)}


def test_no_module_imports_itself_through_others() -> None:
    left = {module_of(path): _imported_on_load(path) for path in source_files()}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert left == {}, "these modules import each other in a circle"


def test_the_package_imports_no_project() -> None:
    projects = {path.name for path in (ROOT / "projects").iterdir() if path.is_dir()}
    wrong = [
        f"{where(path, line)}: imports {name}"
        for path in source_files()
        for line, name in imports_of(path)
        if name.split(".")[0] in projects
    ]
    assert projects and wrong == []


def test_projects_use_only_public_names_of_the_package() -> None:
    wrong = [
        f"{where(path, node.lineno)}: imports {alias.name} of {node.module}"
        for path in (ROOT / "projects").rglob("*.py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vip_llava")
        for alias in node.names
        if alias.name.startswith("_") or "._" in (node.module or "")
    ]
    assert wrong == []


def test_regions_need_only_numpy_and_pillow() -> None:
    wrong = []
    for path in sorted((SOURCE / "regions").rglob("*.py")):
        top = {child for node in tree_of(path).body for child in ast.walk(node)}
        inside = {
            child
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.FunctionDef)
            for child in ast.walk(node)
        }
        lines = {getattr(node, "lineno", 0) for node in top - inside}
        for line, name in imports_of(path):
            root = name.split(".")[0]
            ours = {"vip_llava", "numpy", "PIL"} | set(sys.stdlib_module_names)
            if root not in (ours if line in lines else ours | {"shapely"}):
                wrong.append(f"{where(path, line)}: imports {name}")
    assert wrong == []


@pytest.mark.parametrize("module", ["vip_llava", "vip_llava.errors", "vip_llava.regions"])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    heavy = ["torch", "transformers", "shapely", "pydantic", "safetensors", "typer", "rich"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_network_has_its_doors() -> None:
    wrong = [
        f"{where(path, line)}: {name}"
        for path in source_files()
        if not path.relative_to(SOURCE).as_posix().startswith(NETWORK_DOORS)
        for line, name in imports_of(path)
        if any(f"{name}.".startswith(f"{module}.") for module in NETWORK_MODULES)
    ]
    assert wrong == []


def test_nothing_unsafe_is_called() -> None:
    wrong = []
    others = [ROOT / folder for folder in ("benchmarks", "examples", "projects")]
    paths = source_files() + [path for folder in others for path in folder.rglob("*.py")]
    for path in paths:
        for node in ast.walk(tree_of(path)):
            reason = unsafe(node)
            if reason:
                wrong.append(f"{where(path, getattr(node, 'lineno', 0))}: {reason}")
    assert wrong == []


def unsafe(node: ast.AST) -> str:
    """Why a piece of code is not allowed anywhere in the project, or an empty string."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names]
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
        found = [name for name in names if name.split(".")[0] in UNSAFE_MODULES]
        return f"imports {found[0]}" if found else ""
    if isinstance(node, ast.Constant) and node.value == "trust_remote_code":
        return "trust_remote_code"
    if not isinstance(node, ast.Call):
        return ""
    name = dotted(node.func)
    if name in {"eval", "exec", "__import__"} or name in UNSAFE_CALLS:
        return name
    for keyword in node.keywords:
        if keyword.arg == "trust_remote_code":
            return "trust_remote_code"
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else "unknown"
        if keyword.arg in ("shell", "allow_pickle") and value is not False:
            return f"{keyword.arg}={ast.unparse(keyword.value)}"
    return ""


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "exec(code)",
        "os.system('ls')",
        "run('ls', shell=True)",
        "run('ls', shell=wanted)",
        "load(x, trust_remote_code=False)",
        "options['trust_remote_code'] = True",
        "np.load(f, allow_pickle=True)",
        "yaml.load(text)",
    ],
)
def test_the_check_for_unsafe_code_finds_it(code: str) -> None:
    assert any(unsafe(node) for node in ast.walk(ast.parse(code)))


def test_safe_code_passes_the_check() -> None:
    code = "import json\nmodel.eval()\nrun(['ls'], shell=False)\nyaml.safe_load(text)\n"
    assert not any(unsafe(node) for node in ast.walk(ast.parse(code)))


def test_torch_load_is_called_in_one_function_only() -> None:
    calls, modules = [], []
    for path in source_files():
        for line, name in imports_of(path):
            assert name not in ("torch.load", "torch.hub"), where(path, line)
        for function in ast.walk(tree_of(path)):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Call) and dotted(node.func) == "torch.load":
                        calls.append((path.relative_to(SOURCE).as_posix(), function.name))
                        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                        assert given.get("weights_only") == "True", where(path, node.lineno)
        modules += re.findall(r"torch\.load\(", path.read_text("utf-8"))
    assert len(set(calls)) <= 1
    assert all(path == "models/layouts.py" for path, _ in calls)
    assert len(modules) == len(calls)  # none outside a function either


def test_files_and_functions_stay_short() -> None:
    paths = [path for path in tracked() if path.suffix == ".py"]
    wrong = [
        f"{path.relative_to(ROOT)}: {lines}" for path in paths if (lines := length(path)) > 600
    ]
    wrong += [
        f"{where(path, line)}: {name} has {lines} lines"
        for path in paths
        for name, line, lines in functions_of(path)
        if lines > MAX_FUNCTION_LINES
    ]
    assert wrong == []


def length(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def test_the_usual_file_and_function_are_short() -> None:
    lengths = [length(path) for path in source_files() if length(path) > 5]
    assert statistics.median(lengths) < 200
    functions = [lines for path in source_files() for _, _, lines in functions_of(path)]
    assert sum(lines < 45 for lines in functions) >= 0.9 * len(functions)


def test_modules_open_with_what_they_are() -> None:
    wrong = []
    for path in source_files():
        tree = tree_of(path)
        if not ast.get_docstring(tree):
            wrong.append(f"{path.relative_to(ROOT)}: no docstring")
        future = any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in tree.body)
        if not future and len(tree.body) > 1:
            wrong.append(f"{path.relative_to(ROOT)}: no `from __future__ import annotations`")
    assert wrong == []


def test_every_import_is_declared() -> None:
    """A library that the source imports is a dependency or in an extra of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = list(project["dependencies"])
    for names in project["optional-dependencies"].values():
        wanted += names
    declared = {normal(re.split(r"[<>=!~;\[ ]", name)[0]) for name in wanted}
    homes = importlib.metadata.packages_distributions()
    wrong = []
    for path in source_files():
        for line, name in imports_of(path):
            root = name.split(".")[0]
            if root == "vip_llava" or root in sys.stdlib_module_names:
                continue
            if not {normal(home) for home in homes.get(root, [root])} & declared:
                wrong.append(f"{where(path, line)}: {root}")
    assert wrong == []


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_nothing_names_a_machine_or_a_registry() -> None:
    wrong = []
    for path in tracked():
        content = path.read_bytes()
        if b"\0" in content[:4096]:
            continue
        text = content.decode("utf-8", "replace")
        found = [word for word in REGISTRIES if word in text] + MACHINE_PATH.findall(text)
        # the rule's own pattern is the one exception
        if found and path != Path(__file__):
            wrong.append(f"{path.relative_to(ROOT)}: {found[0]}")
    assert wrong == []


def test_tracked_files_stay_small() -> None:
    sizes = {path: path.stat().st_size for path in tracked()}
    assert sum(sizes.values()) < MAX_TRACKED_BYTES
