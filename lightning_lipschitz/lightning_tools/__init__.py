"""What callbacks and mixins need of Lightning's Trainer and modules; no bound is computed or known in here."""
