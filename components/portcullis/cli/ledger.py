"""The verbs for a data set's privacy ledger: who spent what, when, what is left, and whether it is whole."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from portcullis.cli.show import SHORT, ledger_table, say
from portcullis.errors import DataError, MissingDependencyError, UsageError

try:
    from portcullis_pipelines import home as homes
except ImportError as error:  # pragma: no cover - the wheel always carries both packages
    raise MissingDependencyError("the package portcullis_pipelines is missing; reinstall kfp-portcullis") from error

if TYPE_CHECKING:
    from portcullis.ledger.charge import Ledger
    from portcullis.ledger.entries import Head

_uri = click.argument("uri", required=False)
_trust = click.option(
    "--trust",
    type=click.Path(path_type=Path),
    help="Your trust store, whose policy names ledger and budget (default: PORTCULLIS_TRUST, or the only one below "
    "PORTCULLIS_HOME).",
)


@click.group("ledger")
def ledger() -> None:
    """Look at the privacy ledger of a data set. URI names a copy of it; by default it is where the policy says."""


@ledger.command()
@_uri
@_trust
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
def show(uri: str | None, trust: Path | None, as_json: bool) -> None:  # noqa: FBT001
    """Print who spent what of the data set's privacy budget, and what is left of it."""
    from portcullis.evidence.statement import format_time
    from portcullis.ledger.entries import head_of
    from portcullis.ledger.mechanisms import describe, mechanism_to_dict

    found = _open(uri, trust)
    entries, settings = found.read(), found.settings
    spent, head = found.spent(entries), head_of(entries)
    if as_json:
        document = {
            **{name: getattr(settings, name) for name in ("dataset", "epsilon", "delta", "unit")},
            "spent": spent,
            "left": max(settings.epsilon - spent, 0.0),
            "head": {"number": head.number, "digest": head.digest},
            "entries": [
                {
                    "number": entry.number,
                    "digest": entry.digest,
                    "time": format_time(entry.time),
                    "keyid": entry.key.keyid,
                    "policy": entry.charge.policy,
                    "run": entry.charge.run,
                    "step": entry.charge.step,
                    "mechanism": mechanism_to_dict(entry.charge.mechanism),
                    "output": entry.charge.output,
                }
                for entry in entries
            ],
        }
        click.echo(json.dumps(document, indent=2))
        return
    ledger_table(
        (
            str(entry.number),
            format_time(entry.time)[: len("2026-01-31T23:59")],
            entry.charge.run[:SHORT],
            entry.charge.policy,
            entry.charge.step,
            describe(entry.charge.mechanism),
        )
        for entry in entries
    )
    say(
        f"{settings.dataset}: an epsilon of {spent:.6g} of {settings.epsilon:g} per {settings.unit} is spent at delta "
        f"{settings.delta:g}, {max(settings.epsilon - spent, 0.0):.6g} is left"
    )
    say(f"head {head.number}:{head.digest}")


@ledger.command()
@_uri
@_trust
@click.option("--head", help="NUMBER:SHA256 of an entry that you kept, such as the head that a gate's verdict states.")
def verify(uri: str | None, trust: Path | None, head: str | None) -> None:
    """Verify every line of the ledger, and that it holds the last head that was seen, and yours.

    Exit code 1 where a line was altered, removed, moved or put in between, or the end was cut off.
    """
    from portcullis.ledger.entries import head_of, require_extends

    kept = _head(head) if head else None
    found = _open(uri, trust)
    entries = found.read()
    if kept is not None:
        require_extends(entries, kept, found.settings.dataset)
    now = head_of(entries)
    say(f"{found.settings.dataset}: all lines hold; head {now.number}:{now.digest}")


def _head(text: str) -> "Head":
    from portcullis.ledger.entries import Head

    number, _, digest = text.partition(":")
    try:
        return Head(int(number), digest)
    except (ValueError, DataError) as error:
        raise UsageError("--head is NUMBER:SHA256, as `portcullis ledger show` prints it") from error


def _open(uri: str | None, trust: Path | None) -> "Ledger":
    from portcullis.evidence.trust import TrustStore, state_directory
    from portcullis.ledger.charge import Ledger, open_ledger
    from portcullis.ledger.settings import LedgerSettings
    from portcullis.ledger.stores import LEDGERS_ENV, open_store

    store = TrustStore.load(trust or homes.default_trust())
    named = {
        json.dumps(rule.parameters["ledger"], sort_keys=True): rule.parameters["ledger"]
        for rule in store.policy.steps.values()
        if rule.parameters.get("ledger")
    }
    if len(named) != 1:
        raise UsageError(f"policy {store.policy.name} names {len(named) or 'no'} ledgers; name a --trust of one")
    settings = LedgerSettings.from_dict(next(iter(named.values())))
    os.environ.setdefault(LEDGERS_ENV, str(homes.Home(store.path.absolute().parent).ledgers))
    found = open_ledger(settings, state_directory(store.path.absolute()))
    return Ledger(settings, open_store(uri), found.memory) if uri else found
