"""What mkdocs needs beyond docs/: pages that are written elsewhere, links that hold on the repository's web page and on the
site, equations as MathML, and a check that every public name is in the reference.

mkdocs calls the functions `on_...` (https://www.mkdocs.org/user-guide/plugins/#events).
"""

import argparse
import html
import logging
import os
import posixpath
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
logger = logging.getLogger("mkdocs.hooks")

WRITTEN = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "recipes/README.md": "recipes/index.md",
}
"""Pages of the repository and where they are on the site; those of docs/ keep their names."""

REFERENCE = yaml.safe_load((ROOT / "docs" / "reference.yml").read_text())
"""By page, its title, what it says first, and the names that it documents."""

LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".slurm": "bash", ".cff": "yaml"}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
CODE = re.compile(r"^(`{3,}).*?^\1`*$|(?<!`)(`+)(?!`).+?(?<!`)\2(?!`)", re.S | re.M)
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)
PRIME = re.compile(r"<msup>(<mi>\w</mi>)<(?:mi|mo)>&#x02032;</(?:mi|mo)></msup>")
"""As a superscript it would be raised twice."""
COMMAND = re.compile(r"(mfpo|accelerate|python|torchrun|sbatch) ")
FENCE = "`````"


# Events


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Check the reference, and take the repository's address from its workflow."""
    if "GITHUB_REPOSITORY" in os.environ:
        owner, name = os.environ["GITHUB_REPOSITORY"].split("/")
        config.repo_url, config.repo_name = f"{os.environ['GITHUB_SERVER_URL']}/{owner}/{name}", f"{owner}/{name}"
        config.site_url = f"https://{owner.lower()}.github.io/{name}/"
    if missing := undocumented():
        raise PluginError(f"docs/reference.yml has no page for the public names {', '.join(sorted(missing))}")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written elsewhere, and a page for every file that one of them links to."""
    pages = {site: (ROOT / own).read_text() for own, site in WRITTEN.items()}
    pages |= {f"recipes/{folder.name}.md": recipes_page(folder) for folder in folders_of_recipes()}
    pages |= {f"reference/{name}.md": reference_page(own) for name, own in REFERENCE.items()}
    pages |= {"examples.md": examples_page(), "reference/commands.md": commands_page()}
    for site, text in pages.items():
        files.append(File.generated(config, site, content=text))
    docs = {file.src_uri: (ROOT / "docs" / file.src_uri).read_text() for file in files if is_written_in_docs(file)}
    for site, text in (docs | pages).items():
        for target in linked(text, origin(site)):
            if (place := placed(target)) and place[0].startswith("source/") and place[0] not in files.src_uris:
                files.append(File.generated(config, place[0], content=source_page(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    own, here = page.file.src_uri, origin(page.file.src_uri)

    def onto_site(match: re.Match[str]) -> str:
        path, hash_, anchor = match[2].partition("#")
        if "://" in path or path.startswith("mailto:") or not path:
            return match[0]
        place = placed(resolved(path, here))
        if place is None:
            logger.warning("%s links to %s, which is not there", here, path)
            return match[0]
        target, named = place
        link = posixpath.relpath(target, posixpath.dirname(own) or ".")
        return f"{match[1]}{link}{hash_ + anchor if hash_ else named}{match[3]}"

    return (
        outside_of_code(markdown, lambda text: LINK.sub(onto_site, text))
        if not own.startswith("source/")
        else markdown
    )


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write equations as MathML, which browsers show without a script, and look whether the names of a reference are there."""
    for name in REFERENCE.get(Path(page.file.src_uri).stem, {"names": []})["names"] if is_reference(page.file) else ():
        if f'id="{name}"' not in content:
            logger.warning("%s has nothing on %s; give it a docstring", page.file.src_uri, name)

    def equation(match: re.Match[str]) -> str:
        display = "inline" if match[2] == "(" else "block"
        return PRIME.sub(r"\1<mo>&#x02032;</mo>", convert(html.unescape(match[3]), display=display))

    return EQUATION.sub(equation, content)


# Places


def origin(site: str) -> str:
    """The file of the repository that a page shows, or that its links are relative to."""
    return {there: own for own, there in WRITTEN.items()}.get(site, f"docs/{site}")


def is_written_in_docs(file: File) -> bool:
    """Whether a page is a file of docs/."""
    return file.is_documentation_page() and (ROOT / "docs" / file.src_uri).is_file()


def is_reference(file: File) -> bool:
    """Whether a page is of docs/reference.yml."""
    return file.src_uri.startswith("reference/") and Path(file.src_uri).stem in REFERENCE


def resolved(path: str, here: str) -> str:
    """The path from the root of the repository of what a file links to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), path))


def placed(path: str) -> tuple[str, str] | None:
    """Where a file or folder of the repository is on the site: a page, and a place on it; None where there is no such file."""
    folder, name = posixpath.split(path)
    if path in WRITTEN:
        return WRITTEN[path], ""
    if path.startswith("docs/") and not path.endswith((".py", ".yml")):
        own = path.removeprefix("docs/")
        generated = own in ("examples.md", "reference/commands.md") or (
            own.startswith("reference/") and own[10:-3] in REFERENCE
        )
        return (own, "") if generated or own.startswith("recipes/") or (ROOT / path).is_file() else None
    if not (ROOT / path).exists():
        return None
    if path in ("recipes", "examples"):
        return ("recipes/index.md", "") if path == "recipes" else ("examples.md", "")
    if folder == "recipes":
        return f"{path}.md", ""
    if folder.startswith("recipes/"):
        return f"{folder}.md", f"#{anchor_of(name)}"
    if folder == "examples":
        return "examples.md", f"#{anchor_of(name)}"
    return (f"source/{path}.md", "") if (ROOT / path).is_file() else None


def anchor_of(name: str) -> str:
    """Where the page of a folder shows the file of that name."""
    return name.replace(".", "-")


def outside_of_code(text: str, change: Any) -> str:
    """The text with everything but its code changed."""
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [change(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(text[end:])])


def linked(text: str, here: str) -> Iterator[str]:
    """The files of the repository that a page links to."""
    for match in LINK.finditer(CODE.sub("", text)):
        path = match[2].partition("#")[0]
        if path and "://" not in path:
            yield resolved(path, here)


# Pages


def source_page(path: Path) -> str:
    """A file of the repository as it is."""
    language = LANGUAGES.get(path.suffix, "text")
    code = fenced(path.read_text(), language + ' linenums="1"')
    return f"# {path.relative_to(ROOT).as_posix()}\n\n{code}"


def examples_page() -> str:
    """The scripts of examples/."""
    parts = ["# Examples\n\nShort scripts to copy.\n"]
    for path in sorted((ROOT / "examples").glob("*.py")):
        parts.append(f"## {path.name} {{ #{anchor_of(path.name)} }}\n\n{fenced(path.read_text(), 'python')}")
    return "\n".join(parts)


def folders_of_recipes() -> list[Path]:
    """Each becomes a page."""
    return sorted(folder for folder in (ROOT / "recipes").iterdir() if folder.is_dir())


def recipes_page(folder: Path) -> str:
    """The files of a folder of recipes: what their heads say, and the files."""
    parts = [f"# recipes/{folder.name}\n"]
    for path in sorted(folder.iterdir()):
        head, text = head_of(path), path.read_text()
        body = "\n".join(f"    {line}".rstrip() for line in fenced(text, LANGUAGES[path.suffix]).splitlines())
        parts.append(f'## {path.name} {{ #{anchor_of(path.name)} }}\n\n{head}\n\n??? note "The file"\n\n{body}\n')
    return "\n".join(parts)


def head_of(path: Path) -> str:
    """The comment at the beginning of a file as Markdown: its commands as blocks, all else as a list."""
    lines = path.read_text().splitlines()
    lines = lines[1:] if lines[0].startswith("#!") else lines
    end = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    said: list[str] = []
    for line in (line.removeprefix("#") for line in lines[:end]):
        goes_on = line.startswith("   ") and said and not COMMAND.match(line.strip())
        broken = bool(said) and said[-1].endswith("\\")
        if goes_on or broken:
            said[-1] = f"{said[-1].removesuffix(chr(92)).rstrip()} {line.strip()}"
        elif line.strip():
            said.append(line.strip())
    return "\n\n".join(map(said_in_markdown, said))


def said_in_markdown(line: str) -> str:
    """A line of a head: a sentence, `Name: text`, or a command, perhaps behind its name and before a remark."""
    found = re.fullmatch(r"(?:([A-Z]\w*(?: \w+)?):\s+)?(.*)", line)
    assert found is not None
    label, value = found.groups()
    if not COMMAND.match(value):
        return f"**{label}**: {escaped(value)}" if label else escaped(value)
    command, _, remark = value.partition("   (")
    title = " ".join(filter(None, [f"**{label}**" if label else "", f"({remark}" if remark else ""]))
    return f"{title}\n\n{fenced(command.strip(), 'bash')}".strip()


def escaped(text: str) -> str:
    """Prose of a comment as Markdown that shows it as it is, its flags as code."""
    marked = re.sub(r"(?<![`\w-])(--[a-z][\w-]*)", r"`\1`", text)
    return outside_of_code(marked, lambda own: re.sub(r"([*_<\[\]$])", r"\\\1", own))


def reference_page(own: dict[str, Any]) -> str:
    """The docstrings of a list of names."""
    return "\n\n".join([f"# {own['title']}", own["about"], *(f"::: {name}" for name in own["names"])])


def commands_page() -> str:
    """What `mfpo COMMAND --help` prints, of the commands whose help needs no model library."""
    sys.path.insert(0, str(ROOT / "src"))
    os.environ["COLUMNS"] = "92"
    from mfpo_trl.cli import build_parser

    parser = build_parser()
    parts = [
        "# Commands",
        fenced(parser.format_help(), "text"),
        "`mfpo train` takes the fields of [`MFPOConfig`](training.md), of TRL's `ModelConfig` and `ScriptArguments`, and "
        "`--accelerate-config` and `--num-processes`. `mfpo check` takes the same, and `--rows`, `--gpu-memory`, `--try-forward` "
        "and `--json`. Their `--help` lists them.",
    ]
    from mfpo_trl.evaluation import build_parser as build_score

    listed = [*subcommands(parser), *((f"score {name}", command) for name, command in subcommands(build_score()))]
    for name, command in listed:
        if command.add_help:
            parts.append(f"## mfpo {name} {{ #{name.replace(' ', '-')} }}\n\n{fenced(command.format_help(), 'text')}")
    return "\n\n".join(parts)


def subcommands(parser: argparse.ArgumentParser) -> Iterable[tuple[str, argparse.ArgumentParser]]:
    """The parser of each command by its name."""
    actions = [own for own in parser._actions if isinstance(own, argparse._SubParsersAction)]
    return actions[0].choices.items()


def fenced(text: str, language: str) -> str:
    """A block of code, in a fence that no file here has."""
    return f"{FENCE}{language}\n{text.rstrip()}\n{FENCE}\n"


def undocumented() -> set[str]:
    """The public names of the package that no page of the reference has."""
    sys.path.insert(0, str(ROOT / "src"))
    import mfpo_trl

    there = {name for own in REFERENCE.values() for name in own["names"]}
    return {name for name in mfpo_trl.__all__ if name != "__version__" and f"mfpo_trl.{name}" not in there}
