"""From a Keras model to a verified .tflite file, and what is inside one."""
