"""The pieces of ``examples/align_reviews.py``; ``ppo.py`` is the one to read first."""

import os

# Before torch loads OpenMP: threads that spin while they wait make the fine-tuning 8 times slower
# on two cores when one of them has something else to do.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
