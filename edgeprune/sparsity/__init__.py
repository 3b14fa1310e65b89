"""Zeros in place: schedules, patterns and the callbacks that hold them during training."""
