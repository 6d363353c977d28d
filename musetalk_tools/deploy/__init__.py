"""The helpers of `modal_app.py`: its settings, the services inside the containers, and the smoke test."""
