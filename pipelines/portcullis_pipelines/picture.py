"""The picture of the pipeline, drawn from the policy: for the report as SVG, for the README as Mermaid."""

import html
from collections.abc import Mapping

from portcullis.evidence.policy import EXTERNAL, POLICY, Policy, StepRule
from portcullis_pipelines.steps import STEPS

_ROW, _BOX, _CHARACTER = 44, 190, 6.6  # pixels: between steps, a step's width, a small letter's


def chain_picture(policy: Policy, went: Mapping[str, str]) -> str:
    """Draw the steps from top to bottom, each with where its inputs come from, coloured by how it went.

    Args:
        policy: Names the steps and edges.
        went: Step to `PASSED` or `FAILED`; a step that is not in it did not happen.
    """
    rows = list(policy.steps.values())
    place = {rule.name: index for index, rule in enumerate(rows)}
    spans = [place[rule.name] - place[parent] for rule in rows for parent in rule.parents]
    left = _bend(max(spans, default=0)) + 4
    sources = [_sources(rule) for rule in rows]
    text = left + _BOX + 14
    width = text + round(_CHARACTER * max(map(len, sources), default=0))
    parts = [f'<svg viewBox="0 0 {width} {_ROW * len(rows) + 8}" role="img" style="width:{width}px">']
    for index, rule in enumerate(rows):
        colour = {"PASSED": "var(--ok)", "FAILED": "var(--bad)"}.get(went.get(rule.name, ""), "var(--line)")
        y = index * _ROW + 6
        shape = 15 if rule.kind == "gate" else 4
        parts.append(
            f'<rect x="{left}" y="{y}" width="{_BOX}" height="30" rx="{shape}" fill="none" '
            f'stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(f'<text x="{left + 12}" y="{y + 20}">{html.escape(rule.name)}</text>')
        parts.append(f'<text class="small" x="{text}" y="{y + 20}">{html.escape(sources[index])}</text>')
        for parent in sorted(rule.parents):
            top, bottom = place[parent] * _ROW + 21, y + 15
            reach = left - _bend(index - place[parent])
            parts.append(
                f'<path d="M{left} {top} C {reach} {top}, {reach} {bottom}, {left} {bottom}" fill="none" '
                f'stroke="{colour}" stroke-width="1.5"/>'
            )
    return f'<div class="scroll">{"".join(parts)}</svg></div>'


def _bend(span: int) -> int:
    """Return how far an edge over `span` rows reaches to the left, in pixels."""
    return 8 + 20 * min(span, 6)


def _sources(rule: StepRule) -> str:
    comes = ", ".join(name if name == source else f"{name} from {source}" for name, source in rule.inputs.items())
    return comes + (f"; after {', '.join(rule.requires)}" if rule.requires else "")


def mermaid() -> str:
    """Return the reference pipeline as a Mermaid flowchart."""
    lines = ["flowchart TD"]
    for step in STEPS:
        name = step.name.replace(":", "_")
        lines.append(f"    {name}" + (f'{{{{"{step.name}"}}}}' if step.kind == "gate" else f'["{step.name}"]'))
        for source in step.inputs.values():
            if source not in (EXTERNAL, POLICY):
                parent, _, output = source.partition(".")
                lines.append(f"    {parent.replace(':', '_')} -- {output} --> {name}")
        lines += [f"    {gate.replace(':', '_')} -. PASSED .-> {name}" for gate in step.requires]
    return "\n".join(lines) + "\n"
