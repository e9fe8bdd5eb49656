"""Each shape in which KFP would run past a gate without a word is refused when it is compiled."""

import pytest
from kfp import compiler, dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from portcullis.container import component, gate_pipeline, never_cache
from portcullis.errors import PipelineError
from portcullis_pipelines.lint import lint


@component
def make(data: Output[Dataset]):
    """Make something."""


@component
def judge(data: Input[Dataset], threshold: float, verdict: Output[Artifact]):
    """Judge it."""


@component
def ship(data: Input[Dataset]):
    """Ship it."""


@component
def announce():
    """Tell the world."""


@gate_pipeline("gate")
def gate(data: Input[Dataset], threshold: float):
    judge(data=data, threshold=threshold)


@gate_pipeline("lenient-gate")
def gate_with_default(data: Input[Dataset], threshold: float = 0.9):
    judge(data=data, threshold=threshold)


@gate_pipeline("artifact-only-gate")
def gate_of_artifacts(data: Input[Dataset]):
    judge(data=data, threshold=0.9)


def text_of(pipeline, tmp_path) -> bytes:
    path = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    return path.read_bytes()


def test_a_sound_pipeline_passes(tmp_path):
    @dsl.pipeline(name="sound")
    def pipeline(threshold: float):
        made = make()
        gate(data=made.outputs["data"], threshold=threshold)
        ship(data=made.outputs["data"])
        never_cache()

    lint(text_of(pipeline, tmp_path))


def test_a_gates_input_is_filled_from_its_caller_by_name(tmp_path):
    @dsl.pipeline(name="by-name")
    def pipeline(threshold: float = 0.1):
        gate_with_default(data=make().outputs["data"])
        never_cache()

    with pytest.raises(PipelineError, match=r"leaves out the input 'threshold'"):
        lint(text_of(pipeline, tmp_path))


def test_a_gate_is_given_artifacts_only(tmp_path):
    @dsl.pipeline(name="artifacts-only")
    def pipeline(data: Input[Dataset]):
        gate_of_artifacts(data=make().outputs["data"])
        never_cache()

    with pytest.raises(PipelineError, match="no parameter"):
        lint(text_of(pipeline, tmp_path))


def test_caching_is_switched_on(tmp_path):
    @dsl.pipeline(name="cached")
    def pipeline(threshold: float):
        gate(data=make().outputs["data"], threshold=threshold)

    with pytest.raises(PipelineError, match="may be cached"):
        lint(text_of(pipeline, tmp_path))


def test_an_upstream_failure_is_ignored(tmp_path):
    @dsl.pipeline(name="ignoring")
    def pipeline(threshold: float):
        made = make()
        judged = gate(data=made.outputs["data"], threshold=threshold)
        announce().after(judged).ignore_upstream_failure()
        never_cache()

    with pytest.raises(PipelineError, match="ignore_upstream_failure"):
        lint(text_of(pipeline, tmp_path))


def test_an_exit_handler_is_no_such_thing(tmp_path):
    @component
    def tidy():
        """Tidy up."""

    @dsl.pipeline(name="exit")
    def pipeline(threshold: float):
        with dsl.ExitHandler(tidy()):
            gate(data=make().outputs["data"], threshold=threshold)
        never_cache()

    lint(text_of(pipeline, tmp_path))


@pytest.mark.parametrize("data", [b"", b"a: 1", b"[]", b"root: {dag: {tasks: 3}}", b"\xff"], ids=repr)
def test_what_is_no_pipeline_is_refused(data):
    with pytest.raises(PipelineError, match="not a compiled pipeline"):
        lint(data)


def test_an_optional_artifact_is_left_out(tmp_path):
    @gate_pipeline("optional-gate")
    def optional_gate(threshold: float, data: Input[Dataset] = None):
        judge(data=data, threshold=threshold)

    @dsl.pipeline(name="optional")
    def pipeline(threshold: float):
        make()
        optional_gate(threshold=threshold)
        never_cache()

    with pytest.raises(PipelineError, match="leaves out the input 'data'"):
        lint(text_of(pipeline, tmp_path))


def test_a_pipeline_named_like_an_exit_handler_does_not_free_what_comes_after(tmp_path):
    @component
    def ship_anyway(data: Input[Dataset] = None):
        """Ship it."""

    @gate_pipeline("exit-handler-1")
    def posing(data: Input[Dataset], threshold: float):
        judge(data=data, threshold=threshold)

    @dsl.pipeline(name="posing-pipeline")
    def pipeline(threshold: float):
        made = make()
        judged = posing(data=made.outputs["data"], threshold=threshold)
        ship_anyway(data=made.outputs["data"]).after(judged).ignore_upstream_failure()
        never_cache()

    with pytest.raises(PipelineError, match="ignore_upstream_failure"):
        lint(text_of(pipeline, tmp_path))


def test_an_importer_takes_an_older_import(tmp_path):
    @dsl.pipeline(name="importing")
    def pipeline(threshold: float):
        data = dsl.importer(artifact_uri="/data", artifact_class=Dataset, reimport=False).output
        gate(data=data, threshold=threshold)
        never_cache()

    with pytest.raises(PipelineError, match="reimport=True"):
        lint(text_of(pipeline, tmp_path))


@component
def name_shard() -> str:
    """Return a name."""
    return "1/2"


@gate_pipeline("named-gate")
def named_gate(data: Input[Dataset], threshold: float, step: str):
    judge(data=data, threshold=threshold)


def test_a_gate_in_a_loop_is_called_by_a_name_that_is_put_together(tmp_path):
    @dsl.pipeline(name="spliced")
    def pipeline(threshold: float, shards: list[str]):
        with dsl.ParallelFor(shards) as shard:
            made = make()
            named_gate(data=made.outputs["data"], threshold=threshold, step=f"gate#{shard}")
        never_cache()

    with pytest.raises(PipelineError, match="something spliced in as 'step', which may arrive as null"):
        lint(text_of(pipeline, tmp_path))


def test_a_gate_in_a_loop_is_called_by_the_loops_item(tmp_path):
    @dsl.pipeline(name="whole")
    def pipeline(threshold: float, shards: list[dict[str, str]]):
        with dsl.ParallelFor(shards) as shard:
            made = make()
            named_gate(data=made.outputs["data"], threshold=threshold, step=shard.gate)
        never_cache()

    lint(text_of(pipeline, tmp_path))


def test_a_loop_takes_what_a_task_beside_it_puts_out(tmp_path):
    @dsl.pipeline(name="replaced")
    def pipeline(threshold: float, shards: list[str]):
        told = name_shard()
        with dsl.ParallelFor(shards):
            made = make()
            named_gate(data=made.outputs["data"], threshold=threshold, step=told.output)
        never_cache()

    with pytest.raises(PipelineError, match="is a loop that takes a task's output"):
        lint(text_of(pipeline, tmp_path))
