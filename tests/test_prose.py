"""Pages and help texts use the field's terms, not a private dialect."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tfiseg.cli import main as program

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "plugins" / "README.md",
    ROOT / "docs" / "index.md",
    ROOT / "docs" / "architecture.md",
    *sorted((ROOT / "docs" / "guide").glob("*.md")),
    *sorted((ROOT / "docs" / "reference").glob("*.md")),
]
# pattern -> replacement; see docs/experiments/prose.md
FORBIDDEN = {
    r"\blooked (at|for|once|again)\b|\blooks at\b|\bworth a look\b": "view, pass, refine",
    r"\b(several|thorough|second|more|six|ten) looks?\b": "view, pass, refine",
    r"\bthorough(ly)?\b": "exhaustive refinement",
    r"\bdoubtful\b": "informative",
    r"\banew\b": "again; mask refinement for outlines",
    r"\bcrumbs?\b": "small false positives",
    r"\bsightings?\b": "min_hits, detections",
    r"\bids that stay\b": "persistent track IDs",
    r"\bleast (score|area)\b": "minimum score, minimum area",
    r"\b(neck|part) rule\b": "split rule, second-pass rule",
    r"\bscore rule\b|\brated\b": "score calibration, calibrated score",
    r"\b(mend|mends|mended|mending)\b": "fix",
    r"\b(is|are|was|be|were) told\b|\btold by\b|\btold apart\b": "separated, predicted",
    r"\bin place of\b": "instead of",
    r"\bwhatever comes of\b|\bwhat is known of\b|\bcome of it\b": "a sentence with a subject",
    r"\bfor ever\b": "endless",
    r"\bis asked for\b|\bare asked for\b|\bwhat was asked\b": "requested",
    r"\bsay how many\b|\bsays so\b": "pass a number, state",
    r"\bhug\b|\bhugs\b|\bhugging\b": "overlap",
}


def findings(text: str) -> list[str]:
    """Return the forbidden words of a text and their replacements."""
    return [
        f"{found[0]!r} in {text[max(0, found.start() - 30) : found.end() + 30]!r}: write {instead}"
        for pattern, instead in FORBIDDEN.items()
        for found in re.finditer(pattern, text, re.IGNORECASE)
    ]


def prose(markdown: str) -> str:
    """Return a page without code, link targets and comments."""
    text = re.sub(r"```.*?```|<!--.*?-->", " ", markdown, flags=re.DOTALL)
    return re.sub(r"`[^`]*`|\]\([^)]*\)", " ", text)


def help_text(parser: argparse.ArgumentParser) -> str:
    """Return a verb's help without the names of its options and their choices."""
    return re.sub(r"--[\w-]+|\{[^}]*\}", " ", " ".join(parser.format_help().split()))


def commands(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, nested in action.choices.items():
                yield from commands(nested, f"{name} {verb}")


PARSERS = dict(commands(program._parser(), "tfiseg"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_are_plain_english(page):
    assert findings(prose(page.read_text())) == []


@pytest.mark.parametrize("name", PARSERS)
def test_help_is_plain_english(name):
    assert findings(help_text(PARSERS[name])) == []


@pytest.mark.parametrize(
    "text", ["Masks are drawn anew.", "several looks", "what mends it", "Half of it is crumbs."]
)
def test_dialect_is_found(text):
    assert findings(text)


@pytest.mark.parametrize("text", ["Look at the overlay.", "It tells you whether it fits.", "separated again"])
def test_plain_english_is_not_found(text):
    assert not findings(text)
