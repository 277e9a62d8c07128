"""A file directly in `kd_jax/` is a command, a folder is a part; every module has a reader."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "kd_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
PARTS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))


def trees():
    """Return the syntax tree of every Python file that may import a module of the package."""
    folders = (PACKAGE, ROOT / "tests", ROOT / "configs", ROOT / "benchmarks")
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return {path: ast.parse(path.read_text()) for path in files}


def imported_names():
    """Return the full name of everything that is imported, and which file imports it."""
    names = {}
    for path, tree in trees().items():
        for node in ast.walk(tree):
            found = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                found = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in found:
                names.setdefault(name, set()).add(path)
    return names


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_command(path):
    return path.name == "__main__.py" or path.parent == PACKAGE


def has_main_guard(path):
    tests = [node.test for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
    return any(ast.unparse(test) == "__name__ == '__main__'" for test in tests)


def test_every_module_is_imported_or_named_in_a_document():
    texts = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    documents = "\n".join(texts)
    names = imported_names()
    offenders = []
    for path in MODULES:
        name = dotted(path)
        importers = names.get(name, set()) - {path}
        if path.name == "__init__.py" or (path.name == "__main__.py" and path.parent == PACKAGE):
            continue  # a part, which its modules need, and the list of commands
        document_names = (name.removesuffix(".__main__"), str(path.relative_to(ROOT)))
        if importers or any(re.search(rf"\b{re.escape(n)}\b", documents) for n in document_names):
            continue
        offenders.append(str(path.relative_to(ROOT)))
    assert not offenders, f"imported by nothing and named in no document: {', '.join(offenders)}"


def test_a_file_beside_the_parts_is_a_command():
    files = [path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    offenders = [str(path.relative_to(ROOT)) for path in files if not has_main_guard(path)]
    assert not offenders, (
        f"no command (without `if __name__ == '__main__'`): {', '.join(offenders)}; "
        "a module belongs into the folder of its part"
    )


def test_a_command_of_a_part_is_its_main():
    inside = [path for part in PARTS for path in part.rglob("*.py")]
    offenders = [
        str(path.relative_to(ROOT))
        for path in inside
        if has_main_guard(path) != (path.name == "__main__.py")
    ]
    assert not offenders, f"`__name__ == '__main__'` belongs into __main__.py: {offenders}"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_every_module_says_what_it_does(path):
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = docstring.partition("\n\n")[0]
    assert re.search(r"[.:?]$", first), f"{path.relative_to(ROOT)}: no first sentence: {first!r}"


def test_every_folder_is_a_part():
    folders = {path.parent for path in MODULES} - {PACKAGE}
    offenders = sorted(str(path) for path in folders if not (path / "__init__.py").is_file())
    assert not offenders, f"folders without __init__.py: {', '.join(offenders)}"


def kd_jax(*arguments):
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kd_jax", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_list_of_commands_has_them_all_and_imports_no_jax():
    done = kd_jax()
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^  (\w+)  +\S.*$", done.stdout, flags=re.MULTILINE)
    commands = [path for path in MODULES if is_command(path) and path.name != "__init__.py"]
    names = {path.parent.name if path.name == "__main__.py" else path.stem for path in commands}
    assert listed == sorted(names - {PACKAGE.name})
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"jax", "jaxlib", "flax", "numpy", "tensorflow"}


def test_an_unknown_command_names_the_nearest():
    done = kd_jax("studdy")
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: unknown command 'studdy': did you mean study?")


def test_a_command_has_its_own_help():
    done = kd_jax("recipes", "--help")
    assert done.stdout.startswith("Print the recipes")
