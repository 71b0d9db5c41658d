"""What a release says of itself is one thing, and its workflow trusts nobody more than it has to."""

import re
from pathlib import Path

import infomask_jax

ROOT = Path(__file__).parent.parent


def test_citation_and_changelog_have_the_version_of_the_package():
    (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert [cited, *headings[:2]] == [infomask_jax.__version__, "Unreleased", infomask_jax.__version__]


def test_actions_are_pinned_and_may_only_read():
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    used = re.findall(r"uses: (.*)", workflow)
    assert len(used) == 3 and all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v[\d.]+", name) for name in used)
    granted = re.findall(r"^ *permissions:(.*(?:\n +[\w-]+: (?:read|write|none))*)", workflow, re.M)
    assert [text.split() for text in granted] == [["{}"], ["contents:", "read"]]
    assert "secrets." not in workflow and "twine upload" not in (ROOT / ".ci" / "release").read_text()
