"""Films of sessions: fragments are fetched from agents, joined without encoding them again, and kept in a store."""
