"""`musetalk-orchestrator loadtest`: real sessions, viewers and speech against any deployment; see docs/how-to/loadtest.md."""
