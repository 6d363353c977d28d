"""The film of a session: its media, encoded beside the publisher in a process of their own, in fragments that others collect."""
