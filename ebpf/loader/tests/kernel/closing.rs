//! What a record says at the end: byte counts are exact, whoever closes first and however.
