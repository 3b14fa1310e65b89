"""The values that layers can give, a small rule for each type, in files by kind."""
