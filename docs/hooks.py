"""Pages that are made when the site is built, and links that lead out of docs/.

The command line reference comes from argparse, the C API from its header. Model cards, samples and the
plugin's page live beside the code that they describe. MkDocs knows only files in docs/, so they become pages
here, and links to them are rewritten. On the hosting platform the same links work as they stand.
"""

from __future__ import annotations

import argparse
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
CSRC_HEADER = "plugins/csrc/tfiseg.h"
# file of the repository -> page of the site
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "plugins/README.md": "reference/plugin.md",
    "samples/ros2/tfiseg_ros/README.md": "samples/tfiseg_ros.md",
    CSRC_HEADER: "reference/c-api.md",
    **{
        f"runtime/models/{card.name}": f"models/{card.name}"
        for card in (ROOT / "runtime/models").glob("*.md")
    },
    **{
        str(sample.relative_to(ROOT)): f"samples/{sample.name}.md"
        for pattern in ("samples/*.py", "samples/*/*.py", "samples/cpp/*.cpp", "samples/deploy/*")
        for sample in ROOT.glob(pattern)
    },
}
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for source, page in PAGES.items():
        text = _c_api() if source == CSRC_HEADER else _page_text(source)
        files.append(File.generated(config, page, content=_relinked(text, source, page)))
    files.append(File.generated(config, "reference/cli.md", content=_cli()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links of pages in docs/ that lead to files outside of it."""
    path = page.file.src_uri
    return markdown if page.file.generated_by else _relinked(markdown, f"docs/{path}", path)


def _page_text(source: str) -> str:
    text = (ROOT / source).read_text()
    if source.endswith(".md"):
        return text
    languages = {".py": "python", ".cpp": "cpp", ".service": "ini"}
    language = "docker" if Path(source).stem == "Dockerfile" else languages[Path(source).suffix]
    return f"# {source}\n\n```{language}\n{text}```\n"


def _relinked(markdown: str, source: str, page: str) -> str:
    """The text with links relative to ``page`` where they were relative to ``source``."""

    def relink(found: re.Match[str]) -> str:
        target = found[2]
        if re.match(r"[a-z]+:", target):
            return found[0]
        in_repository = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        in_site = PAGES.get(in_repository) or in_repository.removeprefix("docs/")
        if in_site == in_repository:  # neither a page nor in docs/: a file that only the repository has
            return found[0]
        relative = posixpath.relpath(in_site, posixpath.dirname(page) or ".")
        return f"]({relative}{found[3] or ''})"

    return _LINK.sub(relink, markdown)


def _c_api() -> str:
    """The header as it is: its comments are the documentation."""
    text = (ROOT / CSRC_HEADER).read_text()
    return (
        "# C API\n\n"
        f"This is `{CSRC_HEADER}`. It declares all of the API in plain C: the caller owns the memory and the "
        "stream. "
        "See [the plugin's page](../README.md#from-c-and-c) for how to link it and "
        "[C++](../../docs/guide/cpp.md) for programs.\n\n"
        f"```c\n{text}```\n"
    )


def _cli() -> str:
    from tfiseg.cli.main import _parser

    program = _parser()
    lines = [
        "# Command line",
        "",
        program.description or "",
        "",
        "Generated from the program's own help texts.",
        "",
    ]
    for name, verb in _verbs(program):
        lines += [
            f"## tfiseg {name}",
            "",
            verb.description or "",
            "",
            "```text",
            verb.format_usage().rstrip(),
            "```",
            "",
        ]
        for group in verb._action_groups:
            lines += _options(group, verb)
        if verb.epilog:
            lines += ["```text", verb.epilog.strip("\n"), "```", ""]
    return "\n".join(lines)


def _verbs(
    parser: argparse.ArgumentParser, prefix: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """All verbs in the order of the program's help, nested ones as "train instance"."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, verb in action.choices.items():
                nested = list(_verbs(verb, f"{prefix}{name} "))
                yield from nested or [(prefix + name, verb)]


def _options(group: Any, verb: argparse.ArgumentParser) -> list[str]:
    shown = [a for a in group._group_actions if a.help != argparse.SUPPRESS and a.dest != "help"]
    if not shown:
        return []
    title = {"options": "Options", "positional arguments": "Arguments"}.get(group.title, group.title)
    lines = [f"**{title}**", ""] + ([group.description, ""] if group.description else [])
    lines += ["| option | meaning |" if title != "Arguments" else "| argument | meaning |", "|---|---|"]
    formatter = argparse.HelpFormatter(verb.prog)
    for action in shown:
        name = formatter._format_action_invocation(action)
        text = formatter._expand_help(action) if action.help else ""
        lines.append(f"| `{name}` | {text} |".replace("\n", " "))
    return [*lines, ""]
