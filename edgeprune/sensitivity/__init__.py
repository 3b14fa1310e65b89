"""How much each layer's weights matter: measured, one layer at a time."""
