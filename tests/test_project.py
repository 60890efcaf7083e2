"""What stands around the package: workflows, hooks and templates that only a repository's host reads, and versions."""

import configparser
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
MAY = {("docs.yml", "publish"): {"pages", "id-token"}, ("release.yml", "publish"): {"id-token"}}
"""The jobs that may write, and what; all others read the contents."""


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_there_are_workflows_and_templates():
    assert {path.stem for path in WORKFLOWS} == {"test", "docs", "release"}
    assert {path.stem for path in TEMPLATES} == {"bug", "feature", "config"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows(path):
    """They parse, ask for little, take actions at one version, and run what is there."""
    text = path.read_text()
    found = yaml.safe_load(text)
    assert found[True]  # YAML 1.1 reads the key `on` so
    assert found["permissions"] == {"contents": "read"}
    assert "secrets" not in text
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for name, job in found["jobs"].items():
        assert set(job.get("permissions", ())) == MAY.get((path.name, name), set())
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()
            continue
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            if "uses" in step:
                assert re.search(r"@v\d+\.\d+\.\d+$", step["uses"]), step["uses"]
            elif step["run"].startswith("make "):
                assert step["run"].split()[1] in targets
            elif step["run"].startswith("bash "):
                assert (ROOT / step["run"].split()[1]).is_file()


def test_a_release_is_gated_and_is_the_version():
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    assert release["gate"]["uses"].endswith("test.yml")
    assert (release["build"]["needs"], release["publish"]["needs"]) == ("gate", "build")
    script = next(step["run"] for step in release["build"]["steps"] if "version=" in step.get("run", ""))
    pattern = re.search(r"s/(\^__version__.*\$)/", script)[1].replace(r"\(", "(").replace(r"\)", ")")
    assert re.search(pattern, (ROOT / "src" / "mfpo_trl" / "__init__.py").read_text(), re.M)


def test_hooks_have_the_versions_of_the_constraints():
    found = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    versions = {own["repo"].rsplit("/", 1)[-1].removesuffix("-pre-commit"): own["rev"] for own in found}
    assert versions == {"ruff": f"v{pinned()['ruff']}"}


@pytest.mark.parametrize("path", [path for path in TEMPLATES if path.stem != "config"], ids=lambda path: path.stem)
def test_templates(path):
    found = yaml.safe_load(path.read_text())
    assert found["name"] and found["description"]
    fields = [own for own in found["body"] if own["type"] != "markdown"]
    assert len({own["id"] for own in fields}) == len(fields)
    assert all(own["attributes"]["label"] for own in fields)


def test_what_the_extras_name_is_pinned():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    names = {canonical(re.match(r"[\w.-]+", line)[0]) for own in lists for line in own.split("\n") if line}
    assert names - {"mfpo-trl"} <= set(pinned())
