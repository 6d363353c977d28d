"""The viewers' process, which loads the LiveKit SDK: `python -m orchestrator.loadtest.viewer`."""
