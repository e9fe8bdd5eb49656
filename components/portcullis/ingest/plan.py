"""What the shards of `ingest` must agree on before they work: each tells what its part holds, and a plan joins that.

A survey and a plan are canonical JSON, known by their SHA-256 in the evidence; neither holds a value. The plan fixes
each column's type, as it would be of the whole source, and how many rows each shard has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast, get_args

import pyarrow as pa

from portcullis.dataset import DatasetSpec
from portcullis.digest import FileEntry, canonical_json, is_digest, manifest_digest, parse_canonical_json
from portcullis.errors import DataError
from portcullis.evidence.shards import Shard
from portcullis.ingest.column_types import Facts
from portcullis.ingest.malformed import Reason
from portcullis.ingest.parts import Part, SourcePart, cut, listing_digest
from portcullis.ingest.readers import Surveyed, check_kind
from portcullis.table import schema_of, table_schema

SURVEY_FORMAT = "portcullis-survey/v1"
PLAN_FORMAT = "portcullis-plan/v1"


@dataclass(frozen=True)
class ShardSurvey:
    """What one shard found in its part.

    Attributes:
        shard: Which shard, `0/4`.
        part: What it read.
        listing: SHA-256 of the names and sizes by which the source was cut.
        in_folder: Whether the source is a folder.
        files: The files that it read, or read a part of.
        found: What they hold.
    """

    shard: str
    part: Part
    listing: str
    in_folder: bool
    files: tuple[FileEntry, ...]
    found: Surveyed

    @classmethod
    def of(cls, shard: Shard, source: SourcePart, found: Surveyed) -> Self:
        """Put together what a shard knows."""
        files = tuple(file.entry for file in source.sources.files)
        return cls(str(shard), source.part, source.listing, source.in_folder, files, found)

    def encode(self) -> bytes:
        """Return the survey as canonical JSON."""
        found = self.found
        document = {
            "format": SURVEY_FORMAT,
            "shard": self.shard,
            "part": [self.part.piece, self.part.pieces],
            "listing": self.listing,
            "in_folder": self.in_folder,
            "files": [vars(entry) for entry in self.files],
            "columns": [list(column) for column in table_schema(found.columns)],
            "rows": found.rows,
            "facts": {name: vars(facts) for name, facts in found.facts.items()},
            "kinds": {name: list(kind) for name, kind in found.kinds.items()},
            "text": found.text,
            "malformed": found.malformed,
        }
        return canonical_json(document)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a survey; the inverse of `encode`.

        Raises:
            DataError: It is none.
        """
        document = _document(data, SURVEY_FORMAT)
        try:
            files = tuple(FileEntry(**entry) for entry in document["files"])
            found = Surveyed(
                schema_of(document["columns"]),
                document["rows"],
                {name: Facts(**facts) for name, facts in document["facts"].items()},
                {name: (path, holds) for name, (path, holds) in document["kinds"].items()},
                document["text"],
                _counts(document["malformed"]),
            )
            part = Part(tuple(entry.path for entry in files), *document["part"])
            survey = cls(document["shard"], part, document["listing"], document["in_folder"], files, found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"not a survey of a shard: {error!r:.200}") from error
        if survey.encode() != data:
            raise DataError("the survey of a shard holds fields that no step writes")
        return survey


@dataclass(frozen=True)
class Plan:
    """What the shards of `ingest` are to make.

    Attributes:
        schema: Each column's type.
        rows: How many rows each shard has, in their order.
        malformed: How many records each is to set aside, by reason.
        files: All files of the source, sorted by path.
        raw: What `digest.path_digest` returns for the source.
    """

    schema: pa.Schema
    rows: tuple[int, ...]
    malformed: tuple[Mapping[Reason, int], ...]
    files: tuple[FileEntry, ...]
    raw: str

    def encode(self) -> bytes:
        """Return the plan as canonical JSON."""
        document = {
            "format": PLAN_FORMAT,
            "columns": [list(column) for column in table_schema(self.schema)],
            "rows": list(self.rows),
            "malformed": list(self.malformed),
            "files": [vars(entry) for entry in self.files],
            "raw": self.raw,
        }
        return canonical_json(document)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a plan; the inverse of `encode`.

        Raises:
            DataError: It is none.
        """
        document = _document(data, PLAN_FORMAT)
        try:
            files = tuple(FileEntry(**entry) for entry in document["files"])
            malformed = tuple(map(_counts, document["malformed"]))
            plan = cls(schema_of(document["columns"]), tuple(document["rows"]), malformed, files, document["raw"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"not a plan of shards: {error!r:.200}") from error
        if plan.encode() != data or not is_digest(plan.raw):
            raise DataError("the plan of shards holds fields that no step writes")
        return plan


def plan_of(surveys: Sequence[ShardSurvey], spec: DatasetSpec) -> Plan:
    """Join the surveys of all shards, in their order.

    Raises:
        DataError: They saw different files, or cut them otherwise than is said in `portcullis.ingest.parts`, or their
            parts have different columns; or all together have more malformed records than may be set aside.
        ConfigError: The description contradicts the header.
    """
    first = surveys[0]
    entries: dict[str, FileEntry] = {}
    for index, survey in enumerate(surveys):
        if survey.shard != str(Shard(index, len(surveys))):
            raise DataError(f"shard {index} surveyed the part of shard {survey.shard}")
        for entry in survey.files:
            if entries.setdefault(entry.path, entry) != entry:
                raise DataError(f"{entry.path} changed between the shards; leave the source alone and run again")
    files = tuple(sorted(entries.values(), key=lambda entry: entry.path))
    sizes = [(entry.path, entry.size) for entry in files]
    listing = listing_digest(sizes, in_folder=first.in_folder)
    if {(it.listing, it.in_folder) for it in surveys} != {(listing, first.in_folder)}:
        raise DataError("the shards saw different files; leave the source alone and run again")
    if [it.part for it in surveys] != cut(sizes, len(surveys)):
        raise DataError("the shards cut the source otherwise than they should; do all run the same version?")
    raw = manifest_digest(files) if first.in_folder else files[0].sha256
    malformed = tuple(it.found.malformed for it in surveys)
    total = sum(sum(it.values()) for it in malformed)
    if total > spec.quarantine_at_most:
        allowed = f"the {spec.quarantine_at_most} malformed records that may be set aside"
        raise DataError(f"the shards found {total} malformed records; more than {allowed}")
    return Plan(_joined(surveys).schema(spec), tuple(it.found.rows for it in surveys), malformed, files, raw)


def _joined(surveys: Sequence[ShardSurvey]) -> Surveyed:
    first = surveys[0].found
    facts: dict[str, Facts] = {}
    kinds: dict[str, tuple[str, str]] = {}
    for survey in surveys:
        found = survey.found
        if (found.columns, found.text) != (first.columns, first.text):
            raise DataError(f"the part of shard {survey.shard} has other columns, or other types, than that of shard 0")
        for name, (path, holds) in found.kinds.items():
            check_kind(kinds, name, path, holds)
        for name, more in found.facts.items():
            facts[name] = facts[name].with_(more) if name in facts else more
    return Surveyed(first.columns, sum(it.found.rows for it in surveys), facts, kinds, first.text)


def _counts(document: Mapping[str, Any]) -> Mapping[Reason, int]:
    """Return how many records are malformed for which reason."""
    counts = {name: count for name, count in document.items() if name in get_args(Reason) and type(count) is int}
    if len(counts) != len(document) or any(count < 1 for count in counts.values()):
        raise ValueError("not a count for each reason")
    return cast("Mapping[Reason, int]", counts)


def _document(data: bytes, kind: str) -> Mapping[str, Any]:
    document = parse_canonical_json(data)
    if not isinstance(document, dict) or document.get("format") != kind:
        raise DataError(f"not a {kind}")
    return document
