"""Online estimators: each predicts before it learns and saves its state as plain numbers."""
