"""The house keeps its floors: a module imports only from lower ones, and there are no cycles.

The imports are read from the source (functions and `if TYPE_CHECKING` included), so nothing that is
merely written late escapes. The last tests break the rules on purpose, to see the walk go red.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "optlayer"

FLOORS = [
    {"errors"},
    {"solution", "modes"},
    {"linsolve", "matrix", "batch", "report"},
    {"columns", "fill", "banded"},
    {"saddle", "least_norm"},
    {"sparse_saddle"},
    {"implicit", "deficient"},
    {"equations"},
    {"cones"},
    {"forms"},
    {"certify", "convexity", "balance"},
    {"farkas", "newton", "ties", "declare"},
    {"polish", "smoothing"},
    {"engines"},
    {"plan", "doubts"},
    {"failures"},
    {"solve"},
    {"layer"},
    {"layers", "compat", "diagnostics", "plot"},
]
STRANGERS = [
    {"declare", "engines"},
    {"implicit", "engines"},
]  # these never meet, whatever the floor

Imports = dict[str, dict[str, int]]  # module -> what it imports -> line


def test_imports_point_downwards() -> None:
    assert violations(read(ROOT)) == []


def test_the_front_door_only_re_exports() -> None:
    assert front_door_faults((ROOT / "__init__.py").read_text(encoding="utf-8")) == []


# ---------------------------------------------------------------------------- reading


def read(root: Path) -> Imports:
    """Every module below `root`, and which of them each one imports."""
    modules = {_name(path, root): path for path in sorted(root.rglob("*.py"))}
    return {
        name: dict(_imports(ast.parse(path.read_text(encoding="utf-8")), name, path, set(modules)))
        for name, path in modules.items()
    }


def _name(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.Module, name: str, path: Path, modules: set[str]) -> Iterator[tuple[str, int]]:
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join((above if node.level else []) + ([node.module] if node.module else []))
            inner = [f"{base}.{alias.name}" for alias in node.names]
            targets = [module if module in modules else base for module in inner]
        else:
            continue
        for target in targets:
            if target in modules or target.split(".")[0] == package.split(".")[0]:
                yield target, node.lineno


# ---------------------------------------------------------------------------- judging


def violations(imports: Imports) -> list[str]:
    """One sentence for every broken rule."""
    return [*_unknown(imports), *_upwards(imports), *_cycles(imports)]


def _unknown(imports: Imports) -> Iterator[str]:
    for name in imports:
        if _room(name) and _floor(_room(name)) is None:
            yield f"{name} stands on no floor: give {_room(name)!r} a place in FLOORS"


def _upwards(imports: Imports) -> Iterator[str]:
    for name, targets in imports.items():
        room = _room(name)
        for target, line in targets.items():
            other = _room(target)
            if not room or room == other:  # the front door, or inside one folder
                continue
            here, there = _floor(room), _floor(other)
            if not other:
                yield f"{name}:{line} imports the front door"
            elif {room, other} in STRANGERS:
                one, two = sorted((room, other))
                yield f"{name}:{line} imports {target}: {one} and {two} never meet"
            elif here is not None and there is not None and there >= here:
                yield f"{name}:{line} (floor {here}) imports {target} (floor {there})"


def _cycles(imports: Imports) -> Iterator[str]:
    inside = {name: set(targets) - {name} for name, targets in imports.items()}
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        yield "cycle: " + " -> ".join(reversed(error.args[1]))


def _room(name: str) -> str:
    """The file or folder directly below the package; "" for the front door."""
    return (name.split(".") + [""])[1]


def _floor(room: str) -> int | None:
    return next((floor for floor, rooms in enumerate(FLOORS) if room in rooms), None)


def front_door_faults(source: str) -> list[str]:
    """Statements other than a docstring, `from .x import Name`, `__all__` and `__version__`."""
    body = ast.parse(source).body
    return [f"line {node.lineno}: {ast.unparse(node)}" for node in body if not _re_exports(node)]


def _re_exports(node: ast.stmt) -> bool:
    match node:
        case ast.ImportFrom():
            return True
        case ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__" | "__version__")]):
            return True
    return False


# ---------------------------------------------------------------------------- the walk can fail

SOUND = {
    "__init__.py": "from optlayer.layer import OptLayer as OptLayer",
    "errors.py": "import torch",
    "linsolve.py": "from optlayer import errors",
    "implicit.py": "from optlayer.linsolve import linsolve",
    "forms/__init__.py": "class Form: ...",
    "forms/smooth.py": "from optlayer.forms import Form",
    "forms/other.py": "from optlayer.forms.smooth import smooth",
    "declare/__init__.py": "from optlayer.forms.smooth import smooth",
    "engines/__init__.py": "",
    "solve.py": "from optlayer.engines import table",
    "layer.py": "from .solve import run",
}


def build(house: dict[str, str], folder: Path) -> Path:
    for name, text in house.items():
        (folder / "optlayer" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "optlayer" / name).write_text(text, encoding="utf-8")
    return folder / "optlayer"


def test_a_sound_house_is_accepted(tmp_path: Path) -> None:
    assert violations(read(build(SOUND, tmp_path))) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("linsolve.py", "from optlayer.solve import run", "linsolve:1 (floor 2) imports"),
        ("linsolve.py", "from .forms.smooth import Form", "(floor 9)"),
        ("linsolve.py", "def f():\n    import optlayer.layer", "linsolve:2 (floor 2)"),
        (
            "errors.py",
            "from optlayer.solution import Status",
            "imports optlayer.solution (floor 1)",
        ),
        ("solve.py", "from optlayer import OptLayer", "solve:1 imports the front door"),
        ("solve.py", "from . import OptLayer", "solve:1 imports the front door"),
        ("solve.py", "import optlayer", "solve:1 imports the front door"),
        (
            "declare/tree.py",
            "from optlayer.engines import Engine",
            "declare and engines never meet",
        ),
        ("engines/__init__.py", "from ..implicit import attach", "engines and implicit never meet"),
        ("forms/smooth.py", "from optlayer.forms import other", "cycle: optlayer.forms"),
        ("helpers.py", "", "stands on no floor: give 'helpers'"),
        ("helpers/text.py", "", "stands on no floor: give 'helpers'"),
    ],
)
def test_the_walk_sees(tmp_path: Path, path: str, source: str, complaint: str) -> None:
    house = SOUND | {"solution.py": "", path: source}
    assert any(complaint in sentence for sentence in violations(read(build(house, tmp_path))))


def test_the_front_door_check_sees() -> None:
    assert front_door_faults('"""doc"""\nfrom .layer import OptLayer\n__all__ = ["OptLayer"]') == []
    assert front_door_faults("import torch\nx = 1") == ["line 1: import torch", "line 2: x = 1"]


# ------------------------------------------------------------------------------ rules of the whole house


def sources() -> Iterator[tuple[Path, ast.AST]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_three_autograd_functions() -> None:
    """The root that is attached, the linear solve, and the solve whose derivative is zero."""
    found = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base) == "torch.autograd.Function" for base in node.bases)
    ]
    assert found == ["implicit.py: _Attach", "linsolve.py: _LinearSolve", "solve.py: _Solve"]


def test_no_batched_lu() -> None:
    """torch's is wrong on several threads in some builds; Cholesky, LDLᵀ and eigenvectors are not."""
    wrong = {f"linalg.{name}{ex}" for name in ("solve", "inv", "lu_factor") for ex in ("", "_ex")}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node).removeprefix("torch.") in wrong
    ]
    assert not found
