"""Imports run one way, and nothing outside the Lightning layer needs Lightning."""

import ast
from pathlib import Path

import lit_ddpm

PACKAGE = Path(lit_ddpm.__file__).parent
# Each room may import from the rooms on lines above its own, and from itself.
ORDER = [
    {"configurable", "seeding", "sharding", "hardware"},
    {"schedule"},
    {"gaussian"},
    {"parametrization"},
    {"denoiser", "decoder", "timestep"},
    {"objective", "elbo", "sampler"},
    {"compatibility", "ledger", "nn", "data", "features", "metrics", "run_directory", "checkpoint"},
    {"evaluation", "plots", "optimization"},
    {"module"},
    {"callbacks"},
    {"errors", "trainer"},
    {"lightning_cli"},
    {"compare"},
    {"cli"},
]
LIGHTNING = {
    "module",
    "data",
    "callbacks",
    "cli",
    "lightning_cli",
    "trainer",
    "compare",
    "run_directory",
    "checkpoint",
    "errors",
    "evaluation",
    "hardware",
    "optimization",
    "sharding",
}


def imports():
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                yield from ((room, name) for name in names if name)


def test_imports_run_one_way():
    level = {room: number for number, rooms in enumerate(ORDER) for room in rooms}
    for room, name in imports():
        if name.startswith("lit_ddpm.") and room not in ("__init__", "__main__"):
            other = name.split(".")[1]
            assert level[other] < level[room] or other == room, (room, other)
            if room in ("nn", "data", "features", "metrics"):
                assert other in (room, "configurable", "seeding"), f"{room} imports the mathematics: {other}"


def test_only_the_lightning_layer_imports_lightning():
    assert {room for room, name in imports() if name.split(".")[0] == "lightning"} <= LIGHTNING
