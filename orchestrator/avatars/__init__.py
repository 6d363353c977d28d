"""The avatars that callers keep here."""
