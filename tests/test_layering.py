"""Import rules: they hold, the checker finds breaches, and imports load no more than needed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import layering

ROOT = Path(__file__).parents[1]

CLEAN = {
    "weighting/__init__.py": '"""How much a sample counts."""',
    "weighting/sample.py": '"""A sample."""\nimport msgspec\n',
    "consumers/__init__.py": '"""Bytes to samples."""',
    "consumers/join.py": (
        '"""Join."""\nfrom weighting.sample import Sample\nfrom weighting import sample\n'
    ),
    "consumers/kafka/source.py": '"""Kafka."""\nimport kafka\n',
    "learner/__init__.py": '"""Learns."""',
    "learner/errors.py": '"""Errors."""\n',
    "learner/passes/rows.py": '"""Rows."""\nimport torch\nimport learner.errors\n',
    "learner/encoder/model.py": (
        '"""Model."""\nimport torch.nn\nimport weighting.sample\nimport learner.passes.rows\n'
    ),
}

CONSUMERS_MAY_IMPORT = (
    "consumers may import weighting.constraints, weighting.provenance, "
    "weighting.sample, weighting.tasks of ours"
)

PLANTED = {
    "a folder knows one above it": (
        "consumers/join.py",
        "from learner.encoder.model import Encoder",
        CONSUMERS_MAY_IMPORT,
    ),
    "a folder goes around a door": (
        "consumers/join.py",
        "import weighting.ratio",
        CONSUMERS_MAY_IMPORT,
    ),
    "a folder inside another knows one above it": (
        "learner/passes/rows.py",
        "from learner.encoder import model",
        "learner.passes may import learner.arithmetic, learner.errors, learner.row_counts of",
    ),
    "a lazy import counts": (
        "weighting/sample.py",
        "def f() -> None:\n    import consumers.join",
        "weighting may import nothing of ours",
    ),
    "a typing import counts": (
        "weighting/sample.py",
        "if TYPE_CHECKING:\n    import torch",
        "torch belongs to learner",
    ),
    "a library escapes its module": (
        "consumers/join.py",
        "from kafka import KafkaConsumer",
        "kafka belongs to consumers.kafka.admin",
    ),
    "pickle is nowhere": ("learner/encoder/model.py", "import pickle", "pickle belongs to nothing"),
    "an undeclared library": ("learner/encoder/model.py", "import requests", "in no table"),
    "a relative import": (
        "learner/encoder/model.py",
        "from .text import Text",
        "imports are absolute",
    ),
    "source knows its tests": (
        "learner/encoder/model.py",
        "import tests.fakes",
        "source does not know its tests",
    ),
    "code in an __init__": (
        "weighting/__init__.py",
        "from weighting.sample import Sample",
        "an __init__ is one docstring",
    ),
}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def loaded_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after it ran `code`."""
    script = (
        f"{code}\nimport sys\nprint('LOADED', *{{name.partition('.')[0] for name in sys.modules}})"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return set(output.rpartition("LOADED")[2].split())


def all_of(folder: str) -> str:
    names = [
        module.name
        for module in layering.modules(ROOT)
        if module.folder == folder and not module.name.endswith("__init__")
    ]
    return "import " + ", ".join([folder, *names])


def test_every_import_stays_within_its_doors_and_fences() -> None:
    assert layering.violations(ROOT) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert layering.cycle(ROOT) == []


def test_nothing_reads_or_runs_code_from_data() -> None:
    assert layering.pickles(ROOT) == []


def test_a_clean_tree_passes_the_checker(tmp_path: Path) -> None:
    assert layering.violations(tree(tmp_path, CLEAN)) == []
    assert layering.cycle(tmp_path) == []


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_violation_is_found(tmp_path: Path, case: str) -> None:
    file, line, expected = PLANTED[case]
    found = layering.violations(tree(tmp_path, CLEAN | {file: f"{CLEAN[file]}\n{line}\n"}))
    assert len(found) == 1
    assert expected in found[0]


def test_a_planted_circle_is_found_by_name(tmp_path: Path) -> None:
    back = {
        "weighting/sample.py": '"""A sample."""\ndef f() -> None:\n    import weighting.ratio\n',
        "weighting/ratio.py": "import weighting.sample\n",
    }
    assert set(layering.cycle(tree(tmp_path, CLEAN | back))) == {
        "weighting.sample",
        "weighting.ratio",
    }


@pytest.mark.parametrize("call", ["torch.load(path)", "yaml.load(text)", "eval(text)"])
def test_a_planted_pickle_by_another_name_is_found(tmp_path: Path, call: str) -> None:
    source = f"def f(model):\n    model.eval()\n    return {call}\n"
    assert len(layering.pickles(tree(tmp_path, {"learner/encoder/model.py": source}))) == 1


def test_the_consumers_load_no_training_and_no_serving() -> None:
    assert not loaded_after(all_of("consumers")) & {
        "torch",
        "transformers",
        "starlette",
        "learner",
        "serving",
    }


def test_weighting_loads_none_of_the_others() -> None:
    assert not loaded_after(all_of("weighting")) & {
        "torch",
        "transformers",
        "kafka",
        "starlette",
        "consumers",
        "learner",
        "serving",
        "deploy",
    }


def test_a_sample_loads_neither_numpy_nor_river() -> None:
    assert not loaded_after("import weighting.sample") & {"numpy", "river", "scipy"}


@pytest.mark.skipif(not (ROOT / "serving/app.py").exists(), reason="no serving yet")
def test_the_server_loads_neither_kafka_nor_the_consumers() -> None:
    assert not loaded_after("import serving.app") & {"kafka", "consumers"}


HELP = """
import sys
sys.argv = ['steelyard', '--help']
from deploy.cli.app import main
try:
    main()
except SystemExit:
    pass
"""


@pytest.mark.skipif(not (ROOT / "deploy/cli/app.py").exists(), reason="no command line yet")
def test_help_is_shown_without_loading_torch() -> None:
    assert not loaded_after(HELP) & {"torch", "transformers", "river", "kafka"}
