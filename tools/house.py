"""Measure how the code reads, and find the docstrings that a re-wrapping broke.

    python tools/house.py                the figures of src/retouch, one a line
    python tools/house.py --list         also what makes each figure: the worst files, the names, the places
    python tools/house.py --check        fails on a broken docstring, those of tests and tools too, and on a
                                         method that is spread too far or an `edit.py` that is too long
    python tools/house.py --at FOLDER    the figures of another tree

benchmarks/house.md says what each figure counts.
"""

import ast
import re
import sys
from argparse import ArgumentParser
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

HERE = Path(__file__).parents[1]
CHECKED = ("src", "tests", "tools", "benchmarks")
"""Folders whose docstrings are checked."""
NARROW = 75
"""A line that could have held its follower's first word within so many columns was cut, not wrapped."""
MOST_FILES = 4
"""Files of its own that a method has at most."""
LONGEST_EDIT = 300
"""Lines that `edit.py`, which reads like the paper, stays under."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
DECISIONS = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.match_case,
    ast.comprehension,
)


@dataclass(frozen=True)
class Module:
    """One file, read and parsed."""

    path: Path
    lines: list[str]
    tree: ast.Module

    def functions(self) -> Iterator[Function]:
        """Yield the functions and methods, nested ones too."""
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    def classes(self) -> Iterator[ast.ClassDef]:
        """Yield the classes, nested ones too."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))

    def body_lines(self, function: Function) -> set[int]:
        """Return the numbers of the lines under `function`, from its first statement to its last."""
        body = function.body[ast.get_docstring(function) is not None :]
        return set(range(body[0].lineno, (body[-1].end_lineno or 0) + 1)) if body else set()


@dataclass(frozen=True)
class Figure:
    """One measure of a tree, and what makes it so."""

    name: str
    value: float
    form: str
    causes: list[str]


def main() -> int:
    """Print the figures, or what the check finds; return 1 where it finds anything."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--at", type=Path, default=HERE / "src/retouch")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.check:
        found = broken_docstrings(chain.from_iterable(read(HERE / folder) for folder in CHECKED))
        found += large_methods(read(options.at / "methods"))
        print(*found, sep="\n", end="\n" if found else "")
        return bool(found)
    for figure in figures(list(read(options.at))):
        print(f"{figure.name:<44}{figure.value:>8{figure.form}}")
        if options.list:
            print(*("    " + cause for cause in figure.causes), sep="\n")
    return 0


def read(folder: Path) -> Iterator[Module]:
    """Yield the modules under `folder`, in order."""
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text("utf-8")
        near = path.relative_to(HERE) if path.is_relative_to(HERE) else path
        yield Module(near, text.splitlines(), ast.parse(text))


def large_methods(modules: Iterable[Module]) -> list[str]:
    """Name the folders of a method with too many files, and each `edit.py` that is no page any more."""
    files: dict[Path, list[str]] = defaultdict(list)
    found = []
    for module in modules:
        if module.path.name != "__init__.py":
            files[module.path.parent].append(module.path.name)
        if module.path.name == "edit.py" and len(module.lines) >= LONGEST_EDIT:
            found.append(f"{module.path}: {len(module.lines)} lines; under {LONGEST_EDIT} are a page to read")
    many = {folder: names for folder, names in files.items() if len(names) > MOST_FILES}
    return found + [
        f"{folder}: {', '.join(names)}; {MOST_FILES} files are enough" for folder, names in many.items()
    ]


def figures(modules: list[Module]) -> list[Figure]:
    """Measure a tree."""
    sizes = Counter({module.path: len(module.lines) for module in modules})
    broken = broken_docstrings(modules)
    return [
        Figure(
            "lines", sum(sizes.values()), ",", [f"{size:>6} {path}" for path, size in sizes.most_common(20)]
        ),
        branches(modules),
        words(modules),
        repeated_names(modules),
        bare_dataclasses(modules),
        Figure("broken docstrings", len(broken), "", broken),
    ]


def branches(modules: list[Module]) -> Figure:
    """Measure McCabe's complexity for ten lines of function bodies; nested functions count once."""
    paths, lines = {}, {}
    for module in modules:
        functions = list(module.functions())
        decided = {node: decisions(node) for function in functions for node in ast.walk(function)}
        paths[module.path] = len(functions) + sum(decided.values())
        lines[module.path] = len(set().union(*map(module.body_lines, functions)))
    dense = sorted(paths, key=lambda path: paths[path] - 0.36 * lines[path], reverse=True)[:20]
    causes = [f"{paths[path]:>4} in {lines[path]:>4} lines: {path}" for path in dense]
    return Figure("branches in ten lines", 10 * sum(paths.values()) / sum(lines.values()), ".1f", causes)


def decisions(node: ast.AST) -> int:
    """Return how many more ways there are through `node` than one, its parts left aside."""
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    return isinstance(node, DECISIONS) + len(getattr(node, "ifs", ()))


def words(modules: list[Module]) -> Figure:
    """Measure the words of a class's or function's name: `to_clip` has two, `ClipPyramid` too."""
    named = [node.name for module in modules for node in (*module.classes(), *module.functions())]
    counts = [len(words_of(name)) for name in named if not name.startswith("__")]
    single = Counter(name for name in named if len(words_of(name)) == 1)
    causes = [f"{count:>4} {name}" for name, count in single.most_common(60)]
    return Figure("words in a name", sum(counts) / len(counts), ".2f", causes)


def words_of(name: str) -> list[str]:
    """Split a name at its underscores and capitals."""
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)


def repeated_names(modules: list[Module]) -> Figure:
    """Measure the share of public top-level classes and functions whose name another module has as well."""
    places = defaultdict(list)
    for module in modules:
        for node in module.tree.body:
            if isinstance(node, Definition) and not node.name.startswith("_"):
                places[node.name].append(str(module.path))
    several = {name: found for name, found in places.items() if len(found) > 1}
    causes = [f"{name}: {', '.join(found)}" for name, found in sorted(several.items())]
    shares = sum(map(len, several.values())) / sum(map(len, places.values()))
    return Figure("names that several modules define", shares, ".1%", causes)


def bare_dataclasses(modules: list[Module]) -> Figure:
    """Measure the share of dataclasses without a method among all classes."""
    classes = [(module, node) for module in modules for node in module.classes()]
    bare = [f"{module.path}:{node.lineno}: {node.name}" for module, node in classes if is_bare(node)]
    return Figure("dataclasses without a method", len(bare) / len(classes), ".1%", bare)


def is_bare(node: ast.ClassDef) -> bool:
    """Return whether a class is a dataclass and does nothing."""
    decorators = map(ast.unparse, node.decorator_list)
    return any("dataclass" in text for text in decorators) and not any(
        isinstance(part, Function) for part in node.body
    )


def broken_docstrings(modules: Iterable[Module]) -> list[str]:
    """Name the places where a docstring's lines were cut without reading them."""
    return [
        f"{module.path}:{first + row}: {why}"
        for module in modules
        for first, text in docstrings(module)
        for row, why in breaks(text.splitlines())
    ]


def docstrings(module: Module) -> Iterator[tuple[int, str]]:
    """Yield the docstrings of modules, classes, functions and constants, with their first line's number."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, text


def breaks(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield the rows of a docstring that were cut in the wrong place, each with what is wrong there.

    What is set by hand is left alone: lists, tables with runs of blanks, examples, and what follows click's
    mark. But a fence must have its line.
    """
    kept = False
    for row, line in enumerate(lines):
        before, after = (lines[near] if 0 <= near < len(lines) else "" for near in (row - 1, row + 1))
        kept = bool(line.strip()) and (kept or line.strip() == "\b")
        if "```" in line and not re.fullmatch(r"\s*```[\w-]*", line):
            yield row, "a code fence inside a line"
        elif row and not kept and is_prose(line) and is_prose(after):
            yield from ((row, why) for why in cuts(before, line, after))


def cuts(before: str, line: str, after: str) -> Iterator[str]:
    """Yield what is wrong with a line of running text that stands between two others."""
    ended = line.endswith((".", ":", ";", ",", "!", "?"))
    joined = f"{line} {after.split(maxsplit=1)[0]}"
    entry = ended and re.match(r"\s*[\w*., ]+: ", after)
    if line.count("`") % 2 and after.count("`") % 2:
        yield "inline code over two lines"
    elif len(line.split()) <= 2 and len(before) >= NARROW and not entry:
        yield "a line of one or two words inside a paragraph"
    elif len(joined) <= NARROW and not ended and indent(after) == indent(line):
        yield "a sentence cut short"


def is_prose(line: str) -> bool:
    """Return whether a line is running text."""
    text = line.strip()
    return (
        bool(text)
        and not re.search(r"\S {3,}\S| {2,}#", text)
        and not re.match(r"[-*>|$#\\]|\d+\.|\w+ ?=|python |```", text)
    )


def indent(line: str) -> int:
    """Return how many columns a line is set in."""
    return len(line) - len(line.lstrip())


if __name__ == "__main__":
    sys.exit(main())
