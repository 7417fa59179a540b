"""Check the project's English: forbidden words and turns of phrase, in text and in names.

    python tests/prose.py [path ...]        prints file:line: pattern: text, and exits with 1 if anything is found

Python files: comments, docstrings and string literals, and names for spelling and single words. Other files: every line.
Quoted titles and `code` are skipped. A line with the comment `prose: ok` is accepted.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOTS = ("rgpo", "conf", "README.md", "docs", "experiments", "tests", "benchmarks")
SUFFIXES = (".py", ".md", ".yaml", ".j2", ".html")
EXCEPTIONS = {
    "experiments/LOG.md": "a dated record",
    "tests/prose.py": "defines the patterns",
    "tests/test_prose.py": "quotes what is forbidden",
}
ACCEPT = "prose: ok"
_IZE = (
    "author|capital|categor|character|critic|custom|discret|emphas|factor|final|general|harmon|initial|linear|local|maxim|memor"
    "|minim|neutral|normal|optim|organ|parallel|penal|quant|random|real|recogn|regular|serial|special|stabil|standard|summar|symbol"
    "|symmetr|synchron|token|util|vector|visual"
)
_OUR = "arm|behavi|col|endeav|fav|flav|harb|hon|hum|lab|neighb|od|rig|rum|sav|tum|vap|vig"
_NOUN = "cell|completion|epoch|gpu|iteration|layer|line|module|pair|pass|process|prompt|row|run|seed|step|task|token|update"
WORDS = {  # in text and in names
    "British spelling": rf"(?:de|un|re|over)?-?(?:{_IZE})is(?:e[drs]?|ers|ing|ations?|able)|analys(?:e|ed|ing)"
    rf"|(?:mis|un)?(?:{_OUR})our(?:s|ed|ing|able|ite|ful|hood)?|(?:un)?(?:label|model|signal|travel)l(?:ed|ing)"
    "|cent(?:re[ds]?|ring)|learnt|spelt|burnt|whilst|grey|artefacts?|judgement",
    "forbidden word": r"confess(?:es|ed|ions?)?|materials|climb(?:s|ed|er|ing)?",
}
PHRASES = {  # in text only
    "forbidden phrase": r"without\s+a\s+word|com(?:e|es|ing)\s+by|came\s+by",
    '"a X" for "per X"': r"(?:nats?|[nuµm]?s|seconds?|min|minutes?|hours?|(?:core|cpu)-\w+|[kmgt]?b|bytes?|gflop/s|%|gpus|tokens)"
    rf"\s+an?\s+\**(?:\w*batch|{_NOUN})|one\s+(?!(?:after|before|for|from|i[fns]|inside|of|on|than|to|when|where|with|within)\s)\w+\s+an?\s+(?:\w*batch|{_NOUN})",
}
VERBS = {  # in text; fine of people and of what they write
    "says": r"says?|said(?!\s+to\b)|saying",
    "tells": r"tells?(?!\s+(?:\w+\s+){0,2}apart)|told(?!\s+apart)",
    "asks": r"asks|ask(?:ed|ing)?(?!\s+for\b)",
    "wants": r"want(?:s|ed|ing)?",
    "lies": r"lies?(?!\s+(?:strictly\s+)?(?:in(?!\s+(?:the|a|its)\s+\w*folder)|within|outside|between|above|below)\b)|lying",
    "stands": r"(?<!as it )stands?(?!-|\s+(?:in\s+)?for\b)|stood|standing",
    "looks": r"looks(?!\s+(?:like|up)\b)|looked(?!\s+up\b)",
    "goes on": r"(?:go|goes|going|went)\s+on",
}
_WHO = "abstract|authors?|claims?|friend|he|i|literature|papers?|people|readers?|she|theory|they|users?|we|who|you"
PEOPLE = re.compile(rf"\b(?:{_WHO})(?:['’]\w+)?(?:\s+\w+){{0,2}}\s*$", re.IGNORECASE)
OPENER = re.compile(r"[rbf]*[\"']+\s*(?:what|who|whose|where|how|whether|which)\b", re.IGNORECASE)
BARE_ERROR = re.compile(r"(?:[\"'.;:]|\n)\s*`*\w+Error`*\.\s*[\"']+$")
QUOTES = re.compile(r"\A\w*[\"']+|[\"']+\Z")  # around a string literal
SKIPPED = re.compile(r"`[^`\n]+`|[\"“][A-Z][^\"”\n]* [A-Z][^\"”\n]*[\"”]")  # code, and titles of papers
FIELD = re.compile(r"\{[^{}]*\}")  # of an f-string
TEXT = [(name, re.compile(rf"(?<!\w)(?:{p})(?!\w)", re.IGNORECASE)) for name, p in (WORDS | PHRASES | VERBS).items()]
NAME = [(name, re.compile(rf"(?<![a-zA-Z])(?:{p})(?![a-zA-Z])", re.IGNORECASE)) for name, p in WORDS.items()]


def pieces(path: Path, source: str) -> Iterator[tuple[int, str, str]]:
    """(line, text, kind) of each part of a file that holds text; kind: text, docstring or name."""
    if path.suffix != ".py":
        yield 1, source, "text"
        return
    scopes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, scopes)]
    docstrings = {node.body[0].lineno for node in nodes if ast.get_docstring(node, clean=False) is not None}
    kinds = {"COMMENT": "text", "STRING": "text", "FSTRING_MIDDLE": "text", "NAME": "name"}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = kinds.get(tokenize.tok_name[token.type])
        if kind:
            is_docstring = token.type == tokenize.STRING and token.start[0] in docstrings
            yield token.start[0], token.string, "docstring" if is_docstring else kind


def matches(raw: str, kind: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Everything forbidden in one piece of text."""
    literal, text = re.match(r"(\w{0,2})[\"']", raw), raw
    for pattern in [QUOTES] * bool(literal) + [SKIPPED] + [FIELD] * bool(literal and "f" in literal[1].lower()):
        text = pattern.sub(lambda match: " " * len(match[0]), text)
    for name, pattern in NAME if kind == "name" else TEXT:
        for match in pattern.finditer(text):
            if name not in VERBS or (" " in raw and not PEOPLE.search(text[max(0, match.start() - 80) : match.start()])):
                yield name, match
    if kind == "docstring":
        tests = {"docstring begins with a question word": OPENER.match(raw), "bare error as a sentence": BARE_ERROR.search(raw)}
        yield from ((name, match) for name, match in tests.items() if match)


def find(path: Path) -> list[tuple[int, str, str]]:
    """(line, pattern, text) of everything forbidden in a file."""
    source = path.read_text(encoding="utf-8")
    lines, found = source.splitlines(), []
    for first, raw, kind in pieces(path, source):
        last_line = lines[first + raw.count("\n") - 1] if path.suffix == ".py" else ""
        for name, match in matches(raw, kind):
            line = first + raw.count("\n", 0, match.start())
            if ACCEPT not in lines[line - 1] + last_line:
                found.append((line, name, " ".join(raw[max(0, match.start() - 25) : match.end() + 25].split())))
    return sorted(found)


def main(arguments: list[str]) -> int:
    roots = map(Path, arguments or ROOTS)
    files = (file for root in roots for file in (sorted(root.rglob("*")) if root.is_dir() else [root]))
    checked = (file for file in files if file.suffix in SUFFIXES and file.as_posix() not in EXCEPTIONS)
    found = [f"{file}:{line}: {name}: {text}" for file in checked for line, name, text in find(file)]
    print(*found, sep="\n", end="\n" * bool(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
