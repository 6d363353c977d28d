"""The wire contract between orchestrator, agent and clients: pydantic and the standard library only."""
