"""Run .tflite files and measure them."""
