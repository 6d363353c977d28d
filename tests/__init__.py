import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the agent's command does, before numpy is loaded
