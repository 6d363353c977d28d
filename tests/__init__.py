import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the agent's command does, before numpy is loaded
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # torch's threads spin for each other on a busy machine and lose more than they gain
os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")  # OpenCV's too, which the agent limits as well
