"""The agents behind the orchestrator: which one takes a session, and how it is spoken to."""
