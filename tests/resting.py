"""A pipeline's sealing keys for tests, and data sets as they rest between steps."""

from pathlib import Path

import pyarrow as pa

from portcullis.at_rest import CONTEXT, PRIVATE_KEY, PUBLIC_KEY, open_dataset, seal_dataset
from portcullis.dataset import Dataset, DatasetSpec, parse_dataset
from portcullis.digest import content_digest
from portcullis.files import write_bytes
from portcullis.sealing.recipients import SealingPrivateKey
from portcullis.sealing.sealed import seal_files

KEY = SealingPrivateKey.generate()


def write_keys(folder: Path) -> None:
    """Put the pipeline's two keys where a step finds them."""
    write_bytes(folder / PRIVATE_KEY, KEY.to_pem(), mode=0o600)
    write_bytes(folder / PUBLIC_KEY, KEY.public_key().to_pem(), mode=0o600)


def seal(directory: Path, table: pa.Table, spec: DatasetSpec) -> str:
    return seal_dataset(directory, table, spec, recipient=KEY.public_key())


def spoil(directory: Path, **files: bytes) -> None:
    """Seal other bytes in place of a data set's, as its maker could; a name's dot is written as an underscore."""
    others = {name.replace("_", "."): data for name, data in files.items()}
    whole = open_dataset(directory, key=KEY) | others
    seal_files(whole, directory, recipients=[KEY.public_key()], context=CONTEXT)


def opened(directory: Path, key: SealingPrivateKey = KEY) -> Dataset:
    return parse_dataset(open_dataset(directory, key=key))


def content(directory: Path, key: SealingPrivateKey = KEY) -> str:
    return content_digest(open_dataset(directory, key=key))
