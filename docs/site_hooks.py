"""What mkdocs does for the site beside copying docs/: the home page, the notebooks, the commands.

The home page is README.md and a notebook is shown from its file, so that each text stands once.
Links out of docs/ lead to files of the repository: they must exist, and are links only where
`repo_url` is configured.
"""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of other files."""
    home = _LINK.sub(lambda link: _home_link(link, config), (ROOT / "README.md").read_text())
    files.append(File.generated(config, "index.md", content=home))
    for path in sorted((ROOT / "docs").glob("**/*.ipynb")):
        name = path.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
        files.append(File.generated(config, name, content=notebook(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, **_: Any) -> str:
    """Mend links out of docs/, and list the commands."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def mended(link: re.Match[str]) -> str:
        target = os.path.normpath(folder / link[3])
        if Path(target).is_relative_to(ROOT / "docs"):
            return link[0].replace(".ipynb", ".md")
        return _outside(link, Path(target), config)

    return _LINK.sub(mended, markdown).replace("\nCOMMANDS\n", commands())


def _home_link(link: re.Match[str], config: MkDocsConfig) -> str:
    """Return a link of the README as a link of the page that is made of it."""
    target = ROOT / link[3]
    if not link[3].startswith("docs/"):
        return _outside(link, target, config)
    place = link[3].removeprefix("docs/").replace(".ipynb", ".md")
    return f"{link[1]}[{link[2]}]({place}{link[4] or ''})"


def _outside(link: re.Match[str], target: Path, config: MkDocsConfig) -> str:
    if not target.exists():
        raise PluginError(f"a link leads to {target}, which does not exist")
    if not config.repo_url:
        return link[2]
    return f"[{link[2]}]({config.repo_url}/blob/main/{target.relative_to(ROOT).as_posix()})"


def notebook(path: Path) -> str:
    """Return a notebook as Markdown: text, code, and what the cells printed, if that is kept."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            said = output.get("text") or output.get("data", {}).get("text/plain") or []
            parts.append(f"```text\n{''.join(said).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """Return a section for each command: the docstring of its module."""
    package = ROOT / "kd_jax"
    files = {path.stem: path for path in package.glob("[!_]*.py")}
    files |= {path.parent.name: path for path in package.glob("*/__main__.py")}
    sections = []
    for name, path in sorted(files.items()):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        sections.append(f"\n## {name}\n\n{_with_fences(text)}\n")
    return "".join(sections)


def _with_fences(text: str) -> str:
    """Return a docstring in which indented commands are fenced, so that they are highlighted."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        own = paragraph.splitlines()
        if all(line.startswith("    ") for line in own) or own[0].startswith("python -m"):
            cut = 4 if own[0].startswith("    ") else 0
            lines.append("```bash\n" + "\n".join(line[cut:] for line in own) + "\n```")
        else:
            lines.append(paragraph)
    return "\n\n".join(lines)
