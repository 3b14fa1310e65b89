"""The packed form of .tflite files: `container` has its layout."""
