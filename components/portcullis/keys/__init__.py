"""Keys by URI: where secrets come from, and the signing keys made of them."""

from portcullis.keys.signing import PublicKey, Signer
from portcullis.keys.uri import resolve, role_uri, symmetric_key, variables_for

__all__ = ["PublicKey", "Signer", "resolve", "role_uri", "symmetric_key", "variables_for"]
