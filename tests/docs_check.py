"""Checks README.md, CONTRIBUTING.md, CHANGELOG.md and docs/: make docs-check.

- Commands in fences of the language ``sh`` parse: the program's parser accepts the options, make has the targets, and
  the files that a command reads exist, unless they are generated or stand for the reader's own.
- Links, plots and files in backticks exist, links to headings included.
- The map of the rooms in the README names modules that exist, and all rooms.
- docs/reference.md lists exactly the options of the programs, with their defaults.
- README.md has at most 130 lines of at most 120 columns.

Prints a line per problem, and exits with status 1 if there is one.
"""

import argparse
import contextlib
import fnmatch
import importlib.util
import io
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LINES, COLUMNS = 130, 120
PROGRAMS = ("train.py", "test.py", "test_prune.py", "detect.py", "export.py", "report.py", "benchmark.py")
# What commands read or write, and a clone does not have: generated files, and those beside the repository.
GENERATED = ("checkpoints/*", "runs/*", "output/*", "config/prune_*.cfg", "studies/*.csv", "../shared/*")
# Names in the pages that stand for files of the reader.
PLACEHOLDERS = ("my.data", "config/my.cfg", "config/prune_my.cfg", "my.names", "mine.csv", "clip.mp4", "labels/a.txt")
PLACEHOLDERS += ("images/a.jpg", "train.txt", "valid.txt", "train.json", "val.json", "x.weights")
SUFFIXES = (".cfg", ".data", ".names", ".csv", ".json", ".pth", ".onnx", ".weights", ".mp4", ".txt", ".py", ".md")
SHELL = ("source", "export")  # commands of the shell itself, which are not looked into


def main() -> int:
    """Check every page; the exit status."""
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    pages += sorted((ROOT / "docs").rglob("*.md"))
    problems = [problem for page in pages for problem in page_problems(page, ROOT)]
    problems += size_problems(ROOT / "README.md")
    problems += map_problems((ROOT / "README.md").read_text(encoding="utf-8"), ROOT)
    problems += option_problems((ROOT / "docs" / "reference.md").read_text(encoding="utf-8"))
    for problem in problems:
        print(problem)
    print(f"{len(pages)} pages, {len(problems)} problems")
    return bool(problems)


def page_problems(page: Path, root: Path) -> Iterator[str]:
    """What is wrong with the commands, the links and the named files of a page."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(root)
    for number, block in fences(text):
        for command in commands(block):
            for problem in command_problems(command, root):
                yield f"{name}:{number}: {command}: {problem}"
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if problem := link_problem(page, target):
            yield f"{name}: link {target}: {problem}"
    for path in re.findall(r"`([\w./-]+/[\w.-]+\.\w+)`", prose):
        if not exists(path, root):
            yield f"{name}: `{path}`: no such file"


def fences(text: str) -> Iterator[tuple[int, str]]:
    """The fenced blocks of shell commands, each with the line where it begins."""
    for match in re.finditer(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, match.start()) + 1, match.group(1)


def commands(block: str) -> Iterator[str]:
    """The commands of a block, one line each, without comments, with the variables that the block defines put in."""
    variables: dict[str, str] = {}
    for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        for variable, value in variables.items():
            line = line.replace(f"${variable}", value)
        if match := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[match.group(1)] = match.group(2)
        elif line:
            yield from (part.strip() for part in line.split("&&"))


def command_problems(command: str, root: Path) -> Iterator[str]:
    """What is wrong with a command."""
    if unknown := re.search(r"\$\w+", command):
        yield f"{unknown.group()} is not defined in this block"
        return
    words = shlex.split(command)
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words.pop(0)
    match words:
        case ["python" | ".venv/bin/python", program, *options]:
            yield from program_problems(program, options, root)
        case ["torchrun", *options] if "--" in options:
            program, *options = options[options.index("--") + 1 :]
            yield from program_problems(program, options, root)
        case ["make", *targets]:
            yield from (f"make has no target {t}" for t in targets if "=" not in t and t not in make_targets(root))
        case ["pip", "install", "-r", path] | ["bash", path]:
            if not exists(path, root):
                yield f"{path} does not exist"
        case [".ci/run"] | ["pip", "install", _]:
            pass
        case [word, *_] if word not in SHELL:
            yield f"unknown command {word}: teach tests/docs_check.py"


def program_problems(program: str, options: list[str], root: Path) -> Iterator[str]:
    """What is wrong with the command line of one of our programs."""
    if not (root / program).is_file():
        yield f"{program} does not exist"
        return
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args = parser_of(root / program).parse_args(options)
    except SystemExit:
        yield said.getvalue().strip()
        return
    for value in vars(args).values():
        for word in value if isinstance(value, list) else [value]:
            path = str(word).rpartition("=")[2]
            if isinstance(word, str | Path) and path.endswith(SUFFIXES) and not exists(path, root):
                yield f"{path} does not exist"


@cache
def parser_of(program: Path) -> argparse.ArgumentParser:
    """The parser of a program."""
    name = "docs_check_" + "_".join(program.with_suffix("").parts[-2:])
    spec = importlib.util.spec_from_file_location(name, program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.get_args_parser()


@cache
def make_targets(root: Path) -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([\w-]+):(?!=)", (root / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


def exists(path: str, root: Path) -> bool:
    """Whether a file exists, or need not: what is generated, and what stands for a file of the reader."""
    if (root / path).exists() or path in PLACEHOLDERS or any(fnmatch.fnmatch(path, rule) for rule in GENERATED):
        return True
    return path.startswith("data/") and not path.endswith((".py", ".sh", ".names"))  # of data/ git keeps only these


def link_problem(page: Path, target: str) -> str | None:
    """What is wrong with a link: the file or the heading that it leads to is missing."""
    if re.match(r"\w+://", target):
        return None
    path, _, heading = target.partition("#")
    file = page.parent / path if path else page
    if not file.exists():
        return "no such file"
    if heading and heading not in headings(file.read_text(encoding="utf-8")):
        return "no such heading"
    return None


def headings(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def size_problems(readme: Path) -> Iterator[str]:
    """Whether the README is too long or too wide."""
    lines = readme.read_text(encoding="utf-8").splitlines()
    if len(lines) > LINES:
        yield f"{readme.name}: {len(lines)} lines, {LINES} are allowed"
    for number, line in enumerate(lines, 1):
        if len(line) > COLUMNS:
            yield f"{readme.name}:{number}: {len(line)} columns, {COLUMNS} are allowed"


def map_problems(text: str, root: Path) -> Iterator[str]:
    """What is wrong with the map of the rooms: a module that does not exist, or a room that is missing."""
    room, rooms = "", set()
    for first, second in re.findall(r"^\|([^|]*)\|([^|]*)\|$", text, flags=re.MULTILINE):
        if match := re.fullmatch(r"`(utils/\w+/)`", first.strip()):
            room = match.group(1)
            rooms.add(room)
        elif first.strip():
            room = ""
        for module in re.findall(r"`([a-z_]+)`", second) if room else ():
            if not (root / room / f"{module}.py").is_file() and not (root / room / module).is_dir():
                yield f"README.md: map of the rooms: {room}{module}.py does not exist"
    for folder in sorted((root / "utils").glob("*/__init__.py")):
        if f"utils/{folder.parent.name}/" not in rooms:
            yield f"README.md: map of the rooms: utils/{folder.parent.name}/ is missing"


def option_problems(text: str) -> Iterator[str]:
    """Where the tables of options differ from the programs' parsers."""
    for program in PROGRAMS:
        section = text.partition(f"\n### {program}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
        listed = dict(re.findall(r"^\| `(--[\w-]+)`[^|]*\| ([^|]*?) \|", section, flags=re.MULTILINE))
        actions = {
            a.option_strings[0]: a for a in parser_of(ROOT / program)._actions if a.dest not in ("help", "debug")
        }
        for option in sorted(listed.keys() ^ actions.keys()):
            where = "is not listed" if option in actions else "is listed, and does not exist"
            yield f"docs/reference.md: {program} {option} {where}"
        for option in listed.keys() & actions.keys():
            default = actions[option].default
            if default not in (None, False) and listed[option] != str(default):
                yield f"docs/reference.md: {program} {option}: the default is {default}, not {listed[option]}"


if __name__ == "__main__":
    sys.exit(main())
