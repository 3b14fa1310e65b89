"""Training on the int8 grid."""
