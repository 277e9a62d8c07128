"""The page's templates: what comes from files is text, in the body and in attributes."""

import html.parser
import json
import urllib.parse

import jinja2
import pytest

from helpers import ROOT
from kd_jax.report import page, rendering, results
from synthetic import write_probe, write_run

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></pre></svg><iframe src=//example.com>",
    "{{ 7 * 7 }}{% raw %} &amp; &lt;b&gt;",
    "javascript:alert(1)//",
)


class Elements(html.parser.HTMLParser):
    """The kinds of elements of a page, by tag and names of attributes, its links, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.links, self.text = set(), [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.add((tag, *(name for name, _ in attributes)))
        self.links += [value for name, value in attributes if name == "href"]

    def handle_data(self, data):
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")


def elements_of(root, text):
    """Write the page of a study in which everything that has a name has the same one."""
    place = text.replace("/", "_")
    for seed in (0, 1):
        write_run(
            root / place / str(seed),
            overrides={"seed": seed},
            result={"student": text, "teacher": text, text: text},
        )
    write_run(root / place / "other", overrides={"distill.temperature": 2.0})
    write_run(root / place / "unfinished", finished=False)
    probe = write_probe(root / place / "0", names=[text] * 100)
    probe["confusion"]["superclasses"] = [text] * 20
    (root / place / "0" / "probe.json").write_text(json.dumps(probe))
    runs = [
        {"name": text, "row": row, "workdir": f"{place}/{name}", "published": 40.0, "source": text}
        for name, row in (("0", text), ("1", text), ("other", "other"), ("unfinished", text))
    ]
    content = {"title": text, "baseline": text, "runs": runs}
    (root / "study.json").write_text(json.dumps(content))
    page.write_study(results.load_study(root), root / "page.html")
    return Elements((root / "page.html").read_text())


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_text_everywhere(text, tmp_path):
    """In the title, labels, names of runs, networks, classes and superclasses, sources, paths."""
    hostile = elements_of(tmp_path / "hostile", text)
    harmless = elements_of(tmp_path / "harmless", "a" * len(text))
    assert hostile.elements == harmless.elements
    assert hostile.text.count(text) > 50
    assert hostile.links
    for link in hostile.links:
        assert ":" not in link  # no scheme
        assert (tmp_path / "hostile" / urllib.parse.unquote(link)).is_file()


def test_every_value_of_a_template_is_escaped_and_must_be_there():
    environment = rendering._environment()
    assert environment.from_string("{{ x }}").render(x="<b>'\"") == "&lt;b&gt;&#39;&#34;"
    with pytest.raises(jinja2.UndefinedError, match="'lead' is undefined"):
        rendering.render_page(title="a page")


def test_markup_is_made_in_one_place():
    folder = ROOT / "kd_jax" / "report"
    sources = {path: path.read_text() for path in folder.rglob("*.py")}
    assert [p.name for p, text in sources.items() if "Markup(" in text] == ["figure_style.py"]
    for path in folder.glob("templates/*.html"):
        assert "safe" not in path.read_text(), path
        assert "autoescape" not in path.read_text(), path
