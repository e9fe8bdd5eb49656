r"""Rules of the user's own: identifiers that a pattern finds, in time linear in the text whatever the pattern is.

    rules: {EMPLOYEE_ID: {pattern: 'E\d{6}', context: [employee, staff], validator: luhn}}

A pattern is one of RE2 (https://github.com/google/re2/wiki/Syntax), which never backtracks: no lookaround, no back
references. That makes one search linear; finding all matches would still be quadratic where each search may read to the
end of the text and find nothing (`x.*y|x` in a row of x). So what repeats must have an upper bound, and no match is
longer than the program that the pattern compiles to. Every step of a search is counted against that bound.

A pattern finds the bytes of its whole match; groups do not capture, since what lies outside of one would stay.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal, get_args

import re2

from portcullis.errors import ConfigError
from portcullis.pii.entities import Entity, alphanumeric, digits
from portcullis.pii.operators import VALUE, nearest, shown

Validator = Literal["none", "luhn", "mod97"]

MOST_RULES = 64
MAX_NAME = 40
MAX_PATTERN = 1_000
MAX_MEMORY = 1 << 20
MAX_PROGRAM = 10_000
MAX_WORDS, MAX_WORD = 32, 64
# Whatever is found must be longer than this, or each letter of a text could be an identifier.
SHORTEST = 3
NAME = r"[A-Z]+(?:_[A-Z]+)*"

_NAME = re.compile(NAME)
# In the order of RE2's own reading: an escape, a class as a whole, a repetition, any other character.
_PIECES = re.compile(
    r"\\(?:[pP]\{[^}]*\}|x\{[^}]*\}|.)"
    r"|\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]"
    r"|\{\d+(?P<open>,\})|\{\d+(?:,\d+)?\}|(?P<star>[*+])|.",
    re.DOTALL,
)
_PROBES = [
    "".join(pair) for size in range(SHORTEST) for pair in product(map(chr, (9, 10, *range(32, 127), 0xE9)), repeat=size)
]
_BESIDE = ("", "a", "\n", "-")
_NOTHING = " *|"


@dataclass(frozen=True)
class Rule:
    r"""An identifier of the user's own.

    Attributes:
        name: Upper snake case without digits (`EMPLOYEE_ID`), so that `<EMPLOYEE_ID:…>` holds no number.
        pattern: In RE2's syntax: at most 1,000 characters; what repeats has an upper bound; no group captures; no match
            is shorter than three characters.
        context: Words; where there are any, one must stand in the same cell or in the column's name, in any case.
        validator: What must hold of a match besides: `luhn` (ISO/IEC 7812-1, annex B) of its digits; `mod97` (ISO/IEC
            7064 MOD 97-10, check digits at the end) of its letters and digits.

    Raises:
        ConfigError: Any of this does not hold; the pattern does not compile in RE2 within 1 MiB; or the name is that of
            an entity of ours.
    """

    name: str
    pattern: str
    context: tuple[str, ...] = ()
    validator: Validator = "none"

    def __post_init__(self) -> None:
        checked_name(self.name)
        where = f"masking.rules.{self.name}"
        if self.validator not in get_args(Validator):
            raise ConfigError(f"{where}.validator is {', '.join(get_args(Validator))}")
        for word in self.context:
            if not isinstance(word, str) or not 1 <= len(word) <= MAX_WORD or not re.search(r"[^\W_]", word):
                raise ConfigError(f"{where}.context: a word has 1 to {MAX_WORD} characters, and a letter or digit")
        if len(self.context) > MAX_WORDS or len(set(self.context)) != len(self.context):
            raise ConfigError(f"{where}.context has at most {MAX_WORDS} words, and none twice")
        if reason := _unsound(self.pattern):
            raise ConfigError(f"{where}.pattern {reason}")

    @classmethod
    def parse(cls, name: Any, given: Any) -> "Rule":
        """Read a rule as a masking policy spells it.

        Raises:
            ConfigError: A key is unknown or of another type, or as the rule itself.
        """
        where = f"masking.rules.{shown(name)}"
        if not isinstance(given, dict):
            raise ConfigError(f"{where} maps pattern, and optionally context and validator, to what they are")
        known = ("pattern", "context", "validator")
        for key in given:
            if key not in known:
                raise ConfigError(f"{where} knows no {shown(key)}{nearest(key, known)}")
        context, validator = given.get("context", []), given.get("validator", "none")
        if not isinstance(context, list):
            raise ConfigError(f"{where}.context is a list of words")
        if not isinstance(validator, str):
            raise ConfigError(f"{where}.validator is {', '.join(get_args(Validator))}")
        return cls(name, given.get("pattern"), tuple(context), validator)  # type: ignore[arg-type]

    def spelled(self) -> dict[str, Any]:
        """Return the one spelling of this rule in a masking policy, plain JSON."""
        return {"pattern": self.pattern, "context": list(self.context), "validator": self.validator}

    def valid(self, match: str) -> bool:
        """Tell whether the validator accepts a match."""
        match self.validator:
            case "luhn":
                return _luhn(digits(match))
            case "mod97":
                code = alphanumeric(match)
                return code.isascii() and code.isalnum() and int("".join(str(int(it, 36)) for it in code)) % 97 == 1
        return True

    @cached_property
    def program(self) -> Any:
        """The pattern, compiled."""
        return compiled(self.pattern)


def compiled(pattern: str) -> Any:
    """Compile a pattern in RE2, within 1 MiB.

    Raises:
        ConfigError: It does not compile.
    """
    options = re2.Options()
    options.max_mem = MAX_MEMORY
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        why = str(error.args[0], "utf-8", "replace") if isinstance(error.args[0], bytes) else str(error)
        raise ConfigError(f"is none of RE2's: {shown(why)}") from error


def checked_name(name: Any) -> str:
    """Return the name of an entity of the user's own.

    Raises:
        ConfigError: It is not upper snake case, too long, or the name of one of ours.
    """
    if not isinstance(name, str) or not 2 <= len(name) <= MAX_NAME or _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"an entity of your own is called in capitals and single underscores, 2 to {MAX_NAME} of them, such as "
            f"EMPLOYEE_ID; {shown(name)} is not"
        )
    if name in (*Entity, VALUE):
        raise ConfigError(f"{name} is an entity of Portcullis; give yours another name")
    return name


def parsed_rules(given: Any) -> dict[str, Rule]:
    """Read the rules of a masking policy, in the order of their names.

    Raises:
        ConfigError: As `Rule.parse`; or there are more than 64.
    """
    if not isinstance(given, Mapping):
        raise ConfigError("masking.rules maps entities of your own to their patterns")
    if len(given) > MOST_RULES:
        raise ConfigError(f"masking.rules has at most {MOST_RULES}")
    rules = {name: it if isinstance(it, Rule) else Rule.parse(name, it) for name, it in given.items()}
    if wrong := [name for name, rule in rules.items() if name != rule.name]:
        raise ConfigError(f"masking.rules.{shown(wrong[0])} is called otherwise itself")
    return dict(sorted(rules.items()))


def context_pattern(words: tuple[str, ...]) -> str:
    """Return the pattern, RE2's and Arrow's, of any of these words as a whole, in any case."""
    return rf"(?i)(?:^|[^\pL\pN])(?:{'|'.join(map(re2.escape, words))})(?:[^\pL\pN]|$)"


_CAMEL_CASE = re.compile(r"(?<=[^\W_A-Z])(?=[A-Z])")


def named_by(rule: Rule, column: str) -> bool:
    """Tell whether a column's name has a word of the rule's context in it (`employeeId`, `staff_no`)."""
    return bool(rule.context) and bool(re2.search(context_pattern(rule.context), _CAMEL_CASE.sub(" ", column)))


def _unsound(pattern: Any) -> str:
    """Return what is wrong with a pattern; empty where nothing is."""
    if not isinstance(pattern, str) or not 1 <= len(pattern) <= MAX_PATTERN or not pattern.isprintable():
        return f"is text of 1 to {MAX_PATTERN} printable characters"
    for piece in _PIECES.finditer(pattern):
        if piece["star"] or piece["open"]:
            return "repeats something without an upper bound; write {1,20} in the place of +, {0,20} in that of *"
        if piece[0] in (r"\Q", r"\C"):
            return f"has {piece[0]}; write each character itself"
    try:
        program = compiled(pattern)
        if program.programsize > MAX_PROGRAM:
            return "needs too much memory; narrow its classes or its repetitions"
        if program.groups:
            return "captures a group, and what lies outside would stay; write (?:…)"
        # What matches nothing depends on what stands beside it at most.
        if any(compiled(f"{a}(?:{pattern}){b}").fullmatch(a + b) for a in _BESIDE for b in _BESIDE):
            return "can match nothing at all; make a part of it mandatory"
        if any(map(compiled(pattern).fullmatch, _PROBES)):
            return f"matches fewer than {SHORTEST} characters; an identifier is longer"
        if any(program.search(mark * 2 * MAX_PATTERN) for mark in _NOTHING):
            return "matches blanks, or the stars that masking leaves; say what an identifier looks like"
    except ConfigError as error:
        return str(error)
    return ""


def _luhn(number: str) -> bool:
    doubled = (int(it) * 2 for it in number[-2::-2])
    return bool(number) and (sum(map(int, number[-1::-2])) + sum(it // 10 + it % 10 for it in doubled)) % 10 == 0
