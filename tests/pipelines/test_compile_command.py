"""`portcullis compile`: what it writes, what it says, and what it refuses."""

from functools import partial

import pytest
import yaml
from cluster.small_package import IMAGE, small_package

from portcullis.cli.cluster import compile_package
from portcullis.cli.main import _guarded
from portcullis.digest import sha256
from portcullis.evidence.trust import TrustStore
from portcullis_pipelines.inspection import inspect

OWN = """\
dataset: {name: own, label: {column: y, classes: [a, b]}, features: {columns: ["v*"], shape: [2], low: 0, high: 1}}
"""


@pytest.fixture
def call(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("PORTCULLIS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(*options):
        capfd.readouterr()
        code = _guarded(partial(compile_package, [*map(str, options)], prog_name="portcullis compile"))
        return code, *capfd.readouterr()

    return run


def test_it_says_what_it_wrote_and_which_gpus_that_asks_for(call, tmp_path):
    code, out, err = call("--image", IMAGE)
    data = (tmp_path / "reference.yaml").read_bytes()
    assert code == 0 and out == f"reference.yaml  sha256:{sha256(data)}\n  asks for no GPU\n"
    assert "note" not in err
    assert set(inspect(data).images.values()) == {IMAGE}
    _, out, _ = call("--image", IMAGE, "--gpu", "1", "--gpu-resource", "nvidia.com/mig-1g.10gb")
    assert out.splitlines()[1].startswith("  asks for 1 x nvidia.com/mig-1g.10gb for portcullis-secure-training/")
    assert out.count("train") >= 1 and "robustness" in out


def test_the_same_input_gives_the_same_bytes(call, tmp_path):
    call("--image", IMAGE, "--output", "a.yaml")
    call("--image", IMAGE, "--output", "b.yaml")
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()


def test_the_package_is_called_with_the_configuration_that_the_policy_demands(call, tmp_path):
    (tmp_path / "own.yaml").write_text(OWN)
    assert call("--image", IMAGE, "--config", "own.yaml", "--data", "s3://bucket/rows.csv")[0] == 0
    spec = yaml.safe_load((tmp_path / "reference.yaml").read_bytes().partition(b"\n---\n")[0])
    given = {name: it["defaultValue"] for name, it in spec["root"]["inputDefinitions"]["parameters"].items()}
    assert given["data_uri"] == "s3://bucket/rows.csv" and '"name": "own"' in given["dataset_spec"]
    policy = TrustStore.load(tmp_path / "home" / "own" / "trust").policy
    assert list(policy.step("encrypt").parameters["recipients"]) == given["recipients"] != []
    assert not [
        name for name, it in inspect((tmp_path / "reference.yaml").read_bytes()).parameters.items() if it.required
    ]


def test_split_writes_two_packages_into_a_folder(call, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    code, out, _ = call("--image", IMAGE, "--split", "--output", "out")
    assert code == 0 and out.count("sha256:") == 2
    assert {it.name for it in (tmp_path / "out").iterdir()} == {"secure_training.yaml", "release.yaml", "mine.txt"}
    training, release = (
        inspect((tmp_path / "out" / f"{it}.yaml").read_bytes()) for it in ("secure_training", "release")
    )
    secrets = [{name for task in it.tasks for name in task.secrets} for it in (training, release)]
    assert secrets[1] == {"portcullis-admit", "portcullis-deploy"} and not secrets[0] & secrets[1]
    assert call("--image", IMAGE, "--split")[0] == 0
    assert (tmp_path / "portcullis-package" / "release.yaml").exists()


def test_what_ingest_needs_to_reach_a_bucket(call, tmp_path):
    (tmp_path / "own.yaml").write_text(OWN)
    options = ["--config", "own.yaml", "--data", "minio://bucket/rows.csv"]
    code, _, err = call("--image", IMAGE, *options, "--data-secret", "store", "--data-endpoint", "http://m:9")
    assert code == 0, err
    package = inspect((tmp_path / "reference.yaml").read_bytes())
    (ingest,) = [it for it in package.tasks if it.path.endswith("/ingest")]
    keys = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})
    assert ingest.secrets == {"portcullis-ingest": frozenset(), "store": keys}
    assert b"http://m:9" in package.data
    assert not [it for it in package.tasks if it.claims]


def test_what_ingest_needs_to_reach_a_volume(call, tmp_path):
    (tmp_path / "own.yaml").write_text(OWN)
    code, _, err = call(
        "--image", IMAGE, "--config", "own.yaml", "--data", "/data/rows.parquet", "--data-claim", "rows"
    )
    assert code == 0, err
    tasks = inspect((tmp_path / "reference.yaml").read_bytes()).tasks
    assert {it.path.rpartition("/")[2]: it.claims for it in tasks if it.claims} == {"ingest": ("rows",)}


def test_an_earlier_package_is_overwritten(call, tmp_path):
    assert call("--image", IMAGE)[0] == 0
    before = (tmp_path / "reference.yaml").read_bytes()
    assert call("--image", IMAGE, "--gpu", "1")[0] == 0
    assert (tmp_path / "reference.yaml").read_bytes() != before


OTHERS = {
    "text": lambda: b"mine",
    "a configuration": OWN.encode,
    "a pipeline of one's own": small_package,
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("split", [False, True])
def test_what_is_no_earlier_package_is_not_overwritten(call, tmp_path, content, split):
    taken = tmp_path / "out" / "release.yaml" if split else tmp_path / "out"
    taken.parent.mkdir(exist_ok=True)
    taken.write_bytes(content())
    code, out, err = call("--image", IMAGE, "--output", "out", *(["--split"] if split else []))
    assert (code, out) == (2, "") and "is not what this command writes" in err
    assert taken.read_bytes() == content()
    assert not split or [it.name for it in taken.parent.iterdir()] == ["release.yaml"]  # nor was the other part written


def test_a_link_that_leads_nowhere_is_not_overwritten(call, tmp_path):
    (tmp_path / "reference.yaml").symlink_to("nowhere")
    code, _, err = call("--image", IMAGE)
    assert code == 2 and "cannot read reference.yaml" in err and (tmp_path / "reference.yaml").is_symlink()


def test_without_an_image_it_says_that_submit_will_refuse(call, tmp_path):
    code, _, err = call()
    assert code == 0 and "submit will refuse this" in err.splitlines()[-1]
    with pytest.raises(Exception, match="without a digest"):
        inspect((tmp_path / "reference.yaml").read_bytes()).require_pinned()


BAD = {
    "an image by tag": ["--image", "registry.example/portcullis:1"],
    "a short digest": ["--image", IMAGE[:-1]],
    "a digest of another kind": ["--image", "registry.example/portcullis@sha512:" + "0" * 64],
    "capitals": ["--image", IMAGE[:-1] + "A"],
    "an image with a blank": ["--image", "a b@sha256:" + "0" * 64],
    "data without a configuration": ["--data", "rows.csv"],
    "a negative number of GPUs": ["--gpu", "-1"],
    "too many GPUs": ["--gpu", "1000"],
    "an output that is a folder": ["--output", "."],
    "a folder that is a file": ["--split", "--output", "taken"],
    "a configuration that is not there": ["--config", "nothing.yaml"],
    "a claim that is none": ["--data-claim", "a b"],
    "a claim for the log that is none": ["--audit-claim", "a b"],
    "a claim without a path on it": ["--data-claim", "rows"],
    "a secret for data that need none": ["--data-secret", "store"],
    "a server for data that need none": ["--data-endpoint", "http://m:9"],
    "shared GPUs": ["--gpu-resource", "nvidia.com/gpu.shared"],
    "GPUs of no name": ["--gpu", "1", "--gpu-resource", "a b"],
}


@pytest.mark.parametrize("uri", ["rows.csv", "/rows.csv", "s3://bucket", "https://a/b", "builtin:x", "/data/rows.csv"])
def test_data_that_no_pod_would_find_leave_nothing(call, tmp_path, uri):
    (tmp_path / "own.yaml").write_text(OWN)
    code, out, err = call("--config", "own.yaml", "--data", uri)
    assert (code, out) == (2, "") and err.startswith("UsageError: ")
    assert [it.name for it in tmp_path.iterdir()] == ["own.yaml"]


@pytest.mark.parametrize("options", BAD.values(), ids=BAD)
def test_what_is_refused_leaves_nothing(call, tmp_path, options):
    (tmp_path / "taken").write_text("mine")
    code, out, err = call(*options)
    assert (code, out) == (2, "") and err
    assert {it.name for it in tmp_path.iterdir()} - {"home"} == {"taken"} and (tmp_path / "taken").read_text() == "mine"


def test_the_help_teaches(call):
    code, out, _ = call("--help")
    assert code == 0 and "portcullis compile --image registry.example/portcullis@sha256:" in out and "\\b" not in out
