"""Every spelling that masking leaves, recognised: so that a gate can tell what was masked from what was not.

`masked_spelling` finds them inside text, `cell_spelling` judges a whole cell. Neither needs a key: that a token has the
right letters is what a key would tell, that nothing but letters is left is what these tell.
"""

import re

from portcullis.pii.entities import Entity
from portcullis.pii.operators import Operator
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.synthetic import SPELLINGS
from portcullis.pii.tokens import KINDS, spellings

_IPV4_NETWORK = r"(?:\d{1,3}\.){3}0/24"
_IPV6_NETWORK = r"[0-9a-f:]{1,16}::/48"
_FORMS = {
    "year": r"(?:1[6-9]|20)\d\d",
    "age": r"\d|[1-8]\d|90\+",
    "zip3": r"\d{3}",
    "network": f"{_IPV4_NETWORK}|{_IPV6_NETWORK}|::/48",
    "bin": r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?",
}
# The shortest identifier has more characters; a row of stars that is shorter may be anything.
_STARS = r"\*{4,}"


def masked_spelling(plan: MaskingPlan) -> re.Pattern[str]:
    """Return the pattern of what masking by this plan puts in the place of an identifier in a text.

    Keyed and redacted spellings are recognised of every entity, the others where the plan has them. Of a starred
    identifier it is the stars alone: what `keep_last` leaves is there to be judged with what stands beside it.
    """
    keyed = spellings(plan.kinds)
    parts = [it.pattern for it in (keyed.token, keyed.hash, keyed.redacted)]
    parts.append(re.sub(r"\((?!\?)", "(?:", keyed.reversible.pattern))
    for entity, operator in plan.entities.items():
        if operator.name == "synthetic":
            parts.append(rf"(?<![\w.@-]){SPELLINGS[Entity(entity)]}(?!\w)")
        elif operator.name == "generalise" and operator.form == "network":
            parts.append(rf"(?<![\w.:])(?:{_FORMS['network']})(?!\w)")
    if any(operator.name == "star" for operator in plan.entities.values()):
        parts.append(_STARS)
    return re.compile("|".join(f"(?:{part})" for part in dict.fromkeys(parts)))


def cell_spelling(operator: Operator, kinds: tuple[str, ...] = KINDS) -> re.Pattern[str] | None:
    """Return the pattern that each whole cell of a column matches in full once this operator masked it.

    Args:
        operator: The operator of the column.
        kinds: The entities that a plan knows.

    Returns:
        None for `scan` and `keep`, which leave cells of any kind, and for `drop`, which leaves none.
    """
    match operator.name:
        case "token":
            return spellings(kinds).token
        case "hash":
            return spellings(kinds).hash
        case "reversible":
            return spellings(kinds).reversible
        case "redact":
            return spellings(kinds).redacted
        case "star":
            return re.compile(rf"\**.{{0,{operator.keep_last}}}" if operator.keep_last else r"\**", re.DOTALL)
        case "generalise":
            return re.compile(f"{_FORMS[operator.form]}|{spellings(kinds).redacted.pattern}")
        case "synthetic" if operator.entity is not None:
            return re.compile(SPELLINGS[Entity(operator.entity)])
    return None
