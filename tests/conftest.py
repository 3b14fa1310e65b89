"""Settings for every test; TensorFlow is not imported here."""

import os

# Read when TensorFlow is first imported, by whichever test needs it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
