"""The rules of the house: imports only go down, heavy packages come in where they are needed, nothing is unsafe."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "components" / "portcullis"
PIPELINES = ROOT / "pipelines" / "portcullis_pipelines"
SOURCES = sorted([*LIBRARY.rglob("*.py"), *PIPELINES.rglob("*.py")])

# Lowest first; a module imports from its own floor or a lower one.
FLOORS = [
    {"errors"},
    {
        *("digest", "files", "isolation", "strict_yaml", "keys", "remote", "sealing", "kubernetes_names"),
        *("kubernetes_api", "hash_chain", "random_bits", "safetensors_header", "timestamps"),
    },
    {"evidence", "audit", "table", "report"},
    {"dataset", "models", "ledger"},
    {"at_rest"},
    {
        *("preflight", "ingest", "pii", "quality", "split", "privacy", "training", "dp_training", "robustness"),
        *("membership", "watermark", "budget", "equivalence", "encryption", "signing", "attestation", "sharding"),
        *("admission", "deploy", "serving", "supply_chain"),
    },
    {"container", "harden"},
]
# Stages do not import one another's insides, but for what is the very interface between two of them.
BETWEEN_STAGES = {
    ("admission", "signing"),
    ("sharding", "pii"),  # adds up the counts that masking states
    ("dp_training", "training"),  # trains with its attack
    ("serving", "encryption"),  # opens what it sealed
    ("deploy", "serving"),  # starts and probes the server
}


def name_of(path: Path) -> str:
    base = ROOT / ("components" if path.is_relative_to(ROOT / "components") else "pipelines")
    return ".".join(path.relative_to(base).with_suffix("").parts)


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor_of(part: str) -> int:
    return next(index for index, floor in enumerate(FLOORS) if part in floor)


@pytest.mark.parametrize("path", [path for path in SOURCES if LIBRARY in path.parents], ids=name_of)
def test_imports_only_go_down(path):
    own = path.relative_to(LIBRARY).parts[0].removesuffix(".py")
    if own in ("cli", "__init__"):
        return
    is_component = path.name == "component.py"
    for imported in imports(path):
        if not imported.startswith("portcullis."):
            assert not imported.startswith("portcullis_pipelines"), f"{path} imports {imported}"
            continue
        other = imported.split(".")[1]
        if other == "__version__":
            continue
        if is_component:
            continue
        assert floor_of(other) <= floor_of(own), f"{path} imports {imported} from a higher floor"
        if own != other and floor_of(own) == floor_of(other) == floor_of("pii"):
            assert (own, other) in BETWEEN_STAGES, f"{path} imports the insides of {imported}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_kfp_is_imported_by_components_pipelines_and_the_container_only(path):
    if path.name in ("component.py", "container.py", "harden.py") or PIPELINES in path.parents:
        return
    assert not {name for name in imports(path) if name.split(".")[0] == "kfp"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_components_have_annotations_that_kfp_can_read(path):
    if path.name in ("component.py", "reference.py"):
        assert "__future__" not in {name.split(".")[0] for name in imports(path)}


FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_unpickles_evaluates_or_runs_a_shell(path):
    tree = ast.parse(path.read_text())
    assert not {name.split(".")[0] for name in imports(path)} & FORBIDDEN_MODULES
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                assert node.func.id not in FORBIDDEN_CALLS, f"{path}:{node.lineno}"
            if isinstance(node.func, ast.Attribute):
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                forbidden = {("torch", "load"), ("os", "system"), ("np", "load")}
                # PyTorch's restricted loader, in the locked child process and nowhere else.
                restricted = path == LIBRARY / "supply_chain" / "restricted.py" and [
                    it for it in node.keywords if it.arg == "weights_only" and getattr(it.value, "value", None) is True
                ]
                assert restricted or (owner, node.func.attr) not in forbidden, f"{path}:{node.lineno}"
            assert not [
                keyword
                for keyword in node.keywords
                if keyword.arg == "shell"
                and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            ], f"{path}:{node.lineno}"


# PyTorch's loaders that run what a file says.
FORBIDDEN_LOADERS = {"torch.export.load", "torch.jit.load", "torch.package.PackageImporter", "torch.hub.load"}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_loads_a_program(path):
    tree = ast.parse(path.read_text())
    used = {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)}
    assert not (used | imports(path)) & FORBIDDEN_LOADERS
    assert not {name for name in imports(path) if name.startswith(("torch.export", "torch._export", "torch.jit"))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) == "torch.load":
            assert [it.arg for it in node.keywords if getattr(it.value, "value", None) is True] == ["weights_only"]


@pytest.mark.parametrize("path", sorted(LIBRARY.glob("*/stage.py")), ids=name_of)
def test_no_stage_reads_or_writes_a_data_set_in_plain_text(path):
    """What a stage takes and makes goes through `portcullis.at_rest`."""
    plain = {"write_dataset", "encode_dataset", "read_dataset", "read_dataset_files"}
    assert not {name.rpartition(".")[2] for name in imports(path)} & plain


def test_the_core_imports_without_kfp_torch_or_a_server():
    """What a verifier needs must not pull in what a trainer needs."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"kfp", "torch", "torchattacks", "starlette", "uvicorn", "sklearn", "pandas", "scipy"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import portcullis.cli, portcullis.evidence.step, portcullis.evidence.admission, portcullis.sealing.sealed
import portcullis.watermark.stage, portcullis.privacy.stage, portcullis.signing.stage, portcullis.attestation.stage
import portcullis.pii.stage, portcullis.ingest.stage, portcullis.split.stage, portcullis.admission.stage
import portcullis_pipelines.home, portcullis_pipelines.outcome, portcullis_pipelines.run
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
