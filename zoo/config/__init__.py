"""What is trained with what: hyperparameters, the register of algorithms."""
