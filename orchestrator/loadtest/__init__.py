"""`musetalk-orchestrator loadtest`: real sessions, viewers and speech against any deployment; see docs/topics/loadtest.md."""
