"""One real run of the reference pipeline, shared by a whole test session, and copies of it for attacks."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from portcullis.admission.stage import admit
from portcullis.evidence.chain import join_bundle, split_bundle
from portcullis.evidence.dsse import Envelope, seal_payload
from portcullis.evidence.statement import Statement
from portcullis.evidence.trust import TrustStore
from portcullis.keys import Signer
from portcullis.sealing.recipients import SealingPrivateKey
from portcullis.serving.admitted import AdmittedModel, open_admitted
from portcullis_pipelines import run as running
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.home import Home, ensure_trust, generate_keys, sealing_key, step_names
from portcullis_pipelines.outcome import ADMISSION, EVIDENCE, MODEL, SIGNATURE, Verified, verify_directory


@dataclass(frozen=True)
class RealRun:
    """What one run left (`output`), what its tasks left (`root`), and the keys and trust it was judged by (`home`)."""

    output: Path
    root: Path
    home: Home
    config: ReferenceConfig

    def copy(self, target: Path) -> "RealRun":
        """Copy everything but the tasks' own files, which attacks read only."""
        shutil.copytree(self.output, target / "output")
        shutil.copytree(self.home.root, target / "home")
        shutil.copytree(self.home.ledgers, target / "ledgers")
        return RealRun(target / "output", self.root, Home(target / "home"), self.config)

    @property
    def store(self) -> TrustStore:
        return TrustStore.load(self.home.trust)

    @property
    def scratch(self) -> Path:
        """What its tasks left in their temporary directory."""
        return self.root.parent / "scratch"

    @property
    def pipeline_key(self) -> SealingPrivateKey:
        """What opens the data sets between its steps."""
        return SealingPrivateKey.from_pem((self.home.keys / "pipeline.pem").read_bytes())

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Set what a step of this run would see."""
        names = self.home.environment
        before = {name: os.environ.get(name) for name in names}
        os.environ.update(names)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def lines(self) -> dict[str, bytes]:
        """Return each step's line of evidence."""
        found = split_bundle((self.output / EVIDENCE).read_bytes())
        return {Statement.parse(Envelope.parse(line).payload).step: line for line in found}

    def statement(self, step: str) -> Statement:
        return Statement.parse(Envelope.parse(self.lines()[step]).payload)

    def sign(self, statement: Statement, signer: Signer | None = None) -> bytes:
        """Sign a statement, by its own step's key unless told otherwise."""
        return seal_payload(statement.encode(), signer or self.home.signer(statement.step)).encode()

    def forge(self, step: str, change: Callable[[Statement], Statement], signer: Signer | None = None) -> None:
        """Put a changed statement, properly signed, in the place of a step's own."""
        lines = self.lines()
        lines[step] = self.sign(change(self.statement(step)), signer)
        self.write(lines.values())

    def write(self, lines) -> None:
        (self.output / EVIDENCE).write_bytes(join_bundle(lines))

    def verify(self) -> Verified:
        return verify_directory(self.output, self.store)

    def admit(self) -> str:
        """Ask for a new admission of what lies there now."""
        with self.environment():
            return admit(
                sealed=self.output / MODEL,
                signature=self.output / SIGNATURE,
                evidence=self.output / EVIDENCE,
                admission=self.output / ADMISSION,
            )

    def open(self) -> AdmittedModel:
        """Do what the server does before it serves."""
        with self.environment():
            return open_admitted(
                sealed=self.output / MODEL,
                admission=self.output / ADMISSION,
                evidence=self.output / EVIDENCE,
                trust=None,
                key=sealing_key(self.home),
            )

    def task(self, pattern: str) -> Path:
        """Return one output of one of the run's tasks."""
        (found,) = self.root.glob(f"**/{pattern}")
        return found


def make_real_run(folder: Path, config: ReferenceConfig | None = None) -> RealRun:
    """Run the reference pipeline as `portcullis run` does, but keep the tasks' files."""
    config = config or ReferenceConfig.load(None)
    home = Home(folder / "home" / config.policy_name)
    generate_keys(home, step_names(config))
    store, config = ensure_trust(home, config)
    root, scratch, output = folder / "root", folder / "scratch", folder / "output"
    scratch.mkdir()
    started = running.now_ms()
    log = running._run_child(config, "builtin:cheque-digits", home, root, scratch, lambda *_: None)
    (scratch / "log").write_text(log)
    try:
        running._publish(root, store, output, started=started)
    except Exception as error:
        raise AssertionError(f"the run failed: {error}\n{log[-6000:]}") from error
    return RealRun(output, root, home, config)
