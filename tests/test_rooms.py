"""The house: rooms that read only from the rooms above them, and modules that do nothing when they are imported."""

import ast
import importlib.util
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# In the order of dependence. All other files, the programs and the studies, are below.
ROOMS = [
    "utils",
    "utils.darknet",
    "models",
    "utils.data",
    "utils.detection",
    "utils.pruning",
    "utils.training",
    "utils.report",
    "utils.export",
]
PLACES = ("*.py", "utils/**/*.py", "studies/**/*.py", "config/*.py", "data/*.py")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for place in PLACES
    for path in sorted(ROOT.glob(place))
}
TREES = {module: ast.parse(path.read_text(), str(path)) for module, path in FILES.items()}


def imports(module: str) -> set[str]:
    """The modules of this repository that a module imports: at its top, in functions, or for type checking."""
    names = []
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module if FILES[module].stem == "__init__" else module.rpartition(".")[0]
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            members = [f"{source}.{alias.name}" for alias in node.names]
            names += [member if member in FILES else source for member in members]
    return {name for name in names if name in FILES}


IMPORTS = {module: imports(module) for module in FILES}


def level(module: str) -> int:
    """How far down the module's room is."""
    package = module if FILES[module].stem == "__init__" else module.rpartition(".")[0]
    room = ".".join(package.split(".")[:2]) if module.startswith("utils") else module  # a room may have parts
    return ROOMS.index(room) if room in ROOMS else len(ROOMS)


def is_program(module: str) -> bool:
    """Whether the module is run from a command line."""
    return any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in TREES[module].body)


def test_every_room_is_there():
    assert {level(module) for module in FILES} == set(range(len(ROOMS) + 1))
    strangers = [module for module in FILES if module.startswith("utils") and level(module) == len(ROOMS)]
    assert not strangers, "folders of utils/ that have no place in the order"


def test_a_room_reads_only_from_itself_and_from_rooms_above():
    upwards = [f"{m} imports {name}" for m in FILES for name in IMPORTS[m] if level(name) > level(m)]
    assert not upwards


def test_files_do_not_import_each_other_in_a_circle():
    list(TopologicalSorter(IMPORTS).static_order())  # a CycleError names the circle


def test_no_file_imports_a_program():
    programs = {module for module in FILES if is_program(module)}
    assert {"train", "test", "test_prune", "detect", "export", "report", "benchmark", "config.create_cfg"} <= programs
    assert not [f"{m} imports {name}" for m in FILES for name in sorted(IMPORTS[m] & programs)]


def test_no_file_imports_names_that_it_does_not_list():
    stars = [
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    ]
    assert not stars


IMPORT_ALL = """
import importlib, multiprocessing, os, signal, sys, threading
import cv2, matplotlib, numpy, torch, torchvision  # what they do themselves when they are imported is theirs

def state():
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    settings = [torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), dict(matplotlib.rcParams)]
    running = [threading.enumerate(), multiprocessing.active_children(), multiprocessing.get_start_method(True)]
    chance = [torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist()]
    return {"handlers": handlers, "settings": settings, "running": running, "chance": chance, "path": list(sys.path),
            "environment": dict(os.environ), "folder": os.getcwd()}

before = state()
for module in sys.argv[1:]:
    importlib.import_module(module)
    after = state()
    for name in before:
        assert before[name] == after[name], f"importing {module} changes {name}"
"""


def test_importing_has_no_effect(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"]
    command[-1] += IMPORT_ALL
    done = subprocess.run([*command, *FILES], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir()), "importing writes files"
