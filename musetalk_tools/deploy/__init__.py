"""What `modal_app.py` runs: its numbers, the services inside the containers, and what looks whether all is well."""
