"""Settings for every test; TensorFlow is not imported here."""

import os
import signal

# Read when TensorFlow is first imported, by whichever test needs it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

# A shell starts its background jobs with Ctrl-C ignored, and what they start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
