"""A time-stamp authority of RFC 3161: what it answers, and a server on this machine that answers it.

`tests/data/timestamps/` pins it: a root and a stamp of the document `portcullis` that OpenSSL 3.0 made (`openssl ts
-query -sha256 -cert -no_nonce`, then `openssl ts -reply` with an accuracy of 1.5 s, 2026-11-29 14:18:49 UTC).
"""

import contextlib
import datetime as dt
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from asn1crypto import cms, core, tsp
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

NOW = dt.datetime(2026, 11, 29, 12, tzinfo=dt.UTC)
REJECTION = bytes.fromhex("30053003020102")
QUERY, REPLY = "application/timestamp-query", "application/timestamp-reply"


class Authority:
    """One authority with a root of its own; its certificates count from a day before `NOW` to a day after."""

    def __init__(self, usage=x509.ExtendedKeyUsageOID.TIME_STAMPING):
        keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
        root, self._leaf = (self._certificate(usage, keys, is_root=it) for it in (True, False))
        self._key = keys[1]
        self.pem = root.public_bytes(Encoding.PEM)

    @staticmethod
    def _certificate(usage, keys, *, is_root):
        names = [
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, it)]) for it in ("Test root", "Test authority")
        ]
        public = keys[not is_root].public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[not is_root])
            .issuer_name(names[0])
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - dt.timedelta(days=1))
            .not_valid_after(NOW + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_root, None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False)
        )
        if not is_root:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        return builder.sign(keys[0], hashes.SHA256())

    def answer(self, request, *, when=NOW, accuracy=None, nonce=None):
        """Return a `TimeStampResp`, DER, that grants a `TimeStampReq`; `accuracy` in milliseconds, 0 to 999."""
        query = tsp.TimeStampReq.load(request)
        info = {
            "version": "v1",
            "policy": "1.2.3.4.1",
            "message_imprint": query["message_imprint"],
            "serial_number": 1,
            "gen_time": when,
        }
        if accuracy is not None:
            info["accuracy"] = {"millis": accuracy}
        if nonce is not None or query["nonce"].native is not None:
            info["nonce"] = query["nonce"].native if nonce is None else nonce
        content = tsp.TSTInfo(info).dump()
        leaf = self._leaf.public_bytes(Encoding.DER)
        certificate = asn1_x509.Certificate.load(leaf)
        signer = {"certs": [{"cert_hash": hashlib.sha256(leaf).digest()}]}
        attributes = cms.CMSAttributes(
            [
                cms.CMSAttribute({"type": "content_type", "values": ["tst_info"]}),
                cms.CMSAttribute({"type": "message_digest", "values": [hashlib.sha256(content).digest()]}),
                cms.CMSAttribute({"type": "signing_certificate_v2", "values": [tsp.SigningCertificateV2(signer)]}),
            ]
        )
        name = {"issuer": certificate.issuer, "serial_number": certificate.serial_number}
        signed = cms.SignedData(
            {
                "version": "v3",
                "digest_algorithms": [{"algorithm": "sha256"}],
                "encap_content_info": {"content_type": "tst_info", "content": core.ParsableOctetString(content)},
                "certificates": [certificate],
                "signer_infos": [
                    {
                        "version": "v1",
                        "sid": cms.SignerIdentifier({"issuer_and_serial_number": name}),
                        "digest_algorithm": {"algorithm": "sha256"},
                        "signed_attrs": attributes,
                        "signature_algorithm": {"algorithm": "sha256_ecdsa"},
                        "signature": self._key.sign(attributes.dump(), ec.ECDSA(hashes.SHA256())),
                    }
                ],
            }
        )
        token = {"content_type": "signed_data", "content": signed}
        return tsp.TimeStampResp({"status": {"status": "granted"}, "time_stamp_token": token}).dump()


@contextlib.contextmanager
def serving(answer, *, status=200, media=REPLY):
    """Serve `answer(request)` and yield the URL; a request of another kind than RFC 3161's (3.4) is answered 400."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = self.rfile.read(int(self.headers["Content-Length"]))
            sound = self.headers["Content-Type"] == QUERY
            data = answer(request) if sound else b""
            self.send_response(status if sound else 400)
            self.send_header("Content-Type", media)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            """Keep quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/tsa"
        server.shutdown()
        thread.join()
