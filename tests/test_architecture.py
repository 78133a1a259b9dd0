"""Imports run one way, and the mathematics works without Lightning."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import lit_ddpm

PACKAGE = Path(lit_ddpm.__file__).parent
# Each package imports from those before it, and from itself.
ORDER = [
    "_internal",
    "nn",
    "diffusion",
    "likelihood",
    "metrics",
    "data",
    "training",
    "callbacks",
    "cli",
    "pipelines",
    "compare",
]
WITHOUT_LIGHTNING = ORDER[:5]
FRAMES = r"currentframe|_getframe|walk_(tb|stack)|extract_(tb|stack)|__traceback__|\btb_\w+|\bf_\w+|inspect\.stack"


def imports():
    """Every import of the package: the importing file, its sub-package and the imported module."""
    for path in PACKAGE.rglob("*.py"):
        package = path.relative_to(PACKAGE).parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                yield from ((path, package, name) for name in names if name)


def test_imports_run_one_way():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} == set(ORDER)
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    for path, package, name in imports():
        if name.startswith("lit_ddpm.") and package in ORDER:
            assert ORDER.index(name.split(".")[1]) <= ORDER.index(package), (path, name)
        if package in WITHOUT_LIGHTNING:
            assert name.split(".")[0] != "lightning", path


def test_results_are_converted_to_float64_on_the_cpu():
    """MPS has no float64: a tensor is moved first, or converted by `to_float64`."""
    assert [path for path in PACKAGE.rglob("*.py") if ".double().cpu()" in path.read_text()] == []


def test_the_mathematics_works_without_lightning():
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for package in WITHOUT_LIGHTNING
        for path in sorted((PACKAGE / package).rglob("*.py"))
    ]
    program = f"""
import importlib, sys
sys.modules["lightning"] = None  # importing it raises
import lit_ddpm
for name in {modules!r}:
    importlib.import_module(name)
for name in lit_ddpm.__all__:
    try:
        getattr(lit_ddpm, name)
    except ImportError:
        print(name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["DDPM", "Evaluation", "LinearWarmup", "OneCycle", "num_training_steps"], done.stderr


def test_callbacks_use_public_attributes_of_the_module_and_write_none():
    for path in (PACKAGE / "callbacks").glob("*.py"):
        for line in path.read_text().splitlines():
            assert not re.search(r"\b(pl_)?module\._(?!_)", line), (path, line)
            assert not re.search(r"\b(pl_)?module\.\w+ = ", line), (path, line)


# Attributes of objects of other libraries, and of the standard library, that have no other way to be set.
ASSIGNED = {
    "cli/app.py": {  # the parsed settings of jsonargparse
        *("config.weights_only", "config.ckpt_path", "config.trainer.default_root_dir", "config.number_run"),
        *("arguments.id", "arguments.save_dir"),
    },
    "data/image_modes.py": {"image.filename"},  # Pillow names it in its warnings
    "diffusion/denoiser.py": {"child.training"},  # `nn.Module.train` would change all submodules
    "metrics/fid.py": {f"fid.real_features_{name}" for name in ("sum", "cov_sum", "num_samples")},  # torchmetrics
}


def assigned_attributes(path):
    """The attributes that a file assigns to anything but ``self`` and ``cls``, by a statement or by ``setattr``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "object.__setattr__"):
            if ast.unparse(node.args[0]) != "self":
                yield ast.unparse(node)


def test_no_class_assigns_an_attribute_of_another_object():
    """State has one owner; others call a method or pass arguments."""
    found = {str(path.relative_to(PACKAGE)): set(assigned_attributes(path)) for path in PACKAGE.rglob("*.py")}
    assert {path: names for path, names in found.items() if names} == ASSIGNED


def test_modules_have_names_of_their_own():
    names = [path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))


def test_no_constructor_is_wrapped_and_no_frame_inspected():
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(FRAMES + r"|__init_subclass__|__init__ = ", path.read_text()), path


def test_files_stay_small():
    """One room, one purpose; a file that outgrows this should be split."""
    lengths = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > 300} == {}
