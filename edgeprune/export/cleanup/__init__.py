"""Which channels of a .tflite graph cannot change its outputs, and the graph without them."""
