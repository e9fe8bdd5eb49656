"""The picture of the pipeline, drawn from the policy: for the report as SVG, for the README as Mermaid."""

import html
from collections.abc import Mapping

from portcullis.evidence.policy import EXTERNAL, POLICY, Policy
from portcullis_pipelines.steps import STEPS

_WIDTH, _ROW, _BOX = 640, 44, 190


def chain_picture(policy: Policy, verdicts: Mapping[str, str], admission: str) -> str:
    """Draw the steps from top to bottom, each with where its inputs come from, coloured by how it went.

    Args:
        policy: Names the steps and edges.
        verdicts: Step to `PASSED` or `FAILED`; a step that is not in it did not happen.
        admission: The same for the admission step.
    """
    rows = list(policy.steps.values())
    place = {rule.name: index for index, rule in enumerate(rows)}
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_ROW * len(rows) + 8}" role="img" style="max-width:{_WIDTH}px">']
    for index, rule in enumerate(rows):
        verdict = admission if rule.kind == "admission" else verdicts.get(rule.name, "")
        colour = {"PASSED": "var(--ok)", "FAILED": "var(--bad)"}.get(verdict, "var(--line)")
        y = index * _ROW + 6
        shape = 15 if rule.kind == "gate" else 4
        parts.append(
            f'<rect x="140" y="{y}" width="{_BOX}" height="30" rx="{shape}" fill="none" '
            f'stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(f'<text x="152" y="{y + 20}">{html.escape(rule.name)}</text>')
        comes = ", ".join(f"{name} from {source}" for name, source in rule.inputs.items())
        after = f"; after {', '.join(rule.requires)}" if rule.requires else ""
        parts.append(f'<text class="small" x="{140 + _BOX + 14}" y="{y + 20}">{html.escape(comes + after)}</text>')
        for parent in rule.parents:
            span = index - place[parent]
            top, bottom = place[parent] * _ROW + 21, y + 15
            reach = 136 - 20 * min(span, 6)
            parts.append(
                f'<path d="M140 {top} C {reach} {top}, {reach} {bottom}, 140 {bottom}" fill="none" '
                f'stroke="{colour}" stroke-width="1.5"/>'
            )
    return "".join([*parts, "</svg>"])


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
