"""One small rule for each type of layer and operation, in files by kind."""
