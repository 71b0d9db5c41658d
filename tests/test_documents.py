"""What the documents say to type is accepted, what they name and link to is there."""

import ast
import contextlib
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest
import tyro

from infomask_jax import command, verbs
from infomask_jax.config import Config

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("[be]*/*.md"))]
TEXTS = [path for path in DOCUMENTS if path.name != "NOTEBOOK.md"]  # which tells of what is no more
SCRIPTS = sorted([*ROOT.glob("experiments/*.py"), *ROOT.glob("benchmarks/*.py")])
SOURCES = [*SCRIPTS, *sorted(ROOT.glob("infomask_jax/**/*.py"))]
BLOCKS = [block for path in DOCUMENTS for block in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)]
CONFIG = Config(data_dir="data", workdir="run")
PLACEHOLDERS = {"N": "4", "X": "0.5"}


def commands(path: Path) -> set[str]:
    """What is to be typed: in fences, behind four spaces or in backticks; of a script in its docstring."""
    text = path.read_text()
    text = (ast.get_docstring(ast.parse(text)) or "") if path.suffix == ".py" else text
    text = text.replace("\\\n", " ")
    lines = "".join(re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.M | re.S)).splitlines()
    lines += re.findall(r"^ {4,}(\S.*)", text, re.M) + re.findall(r"`([^`\n]+)`", text)
    lines = [part.strip() for line in lines for part in re.split(r"\s&& | \| | {2,}#.*", line)]
    lines = [re.sub(r"^(\w+=\S* )+", "", line) for line in lines]  # variables before a command
    lines = [re.sub(r"^experiments/tpu.sh start -- ", "python ", line) for line in lines]
    found = {line for line in lines if re.match(r"(python|infomask|make|pip install) ", line)}
    return {line for line in found if line != "python -m infomask_jax" and "$" not in line}  # no whole commands


COMMANDS = sorted({line for path in [*TEXTS, *SCRIPTS] for line in commands(path)})
assert {line.split()[0] for line in COMMANDS} >= {"python", "make", "pip"} and len(COMMANDS) > 30


@pytest.fixture
def parse(monkeypatch, capsys):
    """Runs a command of ours to the end of its parser."""

    class Parsed(BaseException):
        """The command line was accepted."""

    def cli(*arguments, real=tyro.cli, **options):
        real(*arguments, **options)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", cli)
    monkeypatch.setattr(command, "ends", lambda **_: contextlib.nullcontext())

    def run(target: str, *arguments: str) -> None:
        monkeypatch.setattr("sys.argv", [target, *arguments])
        monkeypatch.syspath_prepend(str((ROOT / target).parent))
        try:
            verbs.main(target) if target == "infomask" else runpy.run_path(str(ROOT / target), run_name="__main__")
        except (Parsed, SystemExit) as end:
            assert isinstance(end, Parsed), capsys.readouterr()

    return run


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_accepted(line, parse):
    program, *words = (PLACEHOLDERS.get(word, word) for word in shlex.split(re.sub(r"[\[\]]", "", line)))
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        for name, assigned in re.findall(r"(\w+)(=?)", " ".join(words)):
            assert re.search(rf"^{name} \?=|\$\({name}\)" if assigned else rf"^{name}:", makefile, re.M), name
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert set(re.findall(r"\.\[(\w+)\]", line)) <= project["optional-dependencies"].keys()
    elif program == "infomask" or words[:2] == ["-m", "infomask_jax"]:
        parse("infomask", *words[0 if program == "infomask" else 2 :])
    elif ROOT / words[0] in SCRIPTS:
        parse(*words)
    else:
        script = (ROOT / words[0]).read_text()
        assert all(word in script for word in words if word.startswith("--"))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_in_prose_are_settings(path):
    source = "".join(file.read_text() for file in [*SOURCES, *ROOT.glob("tests/**/*.py")])
    for option in re.findall(r"`--(?:no-)?([a-z.-]+)", path.read_text()):
        group, _, name = option.replace("-", "_").rpartition(".")
        known = name in vars(getattr(CONFIG, group)) if group else re.search(rf"^    {name}: ", source, re.M)
        assert known or f'"--{option}"' in source, option


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path):
    for file, anchor in re.findall(r"\]\((?!\w+:)([^)#]*)#?([^)]*)\)", path.read_text()):
        target = path.parent / file if file else path
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if anchor else []
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}  # GitHub's
        assert target.exists() and (not anchor or anchor in anchors), f"{file}#{anchor}"


@pytest.mark.parametrize("path", [*TEXTS, *SOURCES, ROOT / ".ci" / "run"], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_are_there(path):
    named = r"(?<![\w/.])(?:tests|benchmarks|experiments|docs|infomask_jax)/[\w./-]+\.(?:py|md|sh|jsonl?|npz)\b"
    assert not [name for name in re.findall(named, path.read_text()) if not (ROOT / name).exists()]


def test_tests_that_are_named_are_there():
    file = None
    for name, test in re.findall(r"`(test_\w+\.py)?(?:::(\w+))?`", (ROOT / "docs" / "robustness.md").read_text()):
        file = name or file  # a later one of a row may leave the file out
        assert not test or f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_import_what_there_is(block):
    imports = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Import | ast.ImportFrom)]
    exec("\n".join(map(ast.unparse, imports)), {})
