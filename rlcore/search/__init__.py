"""Search for a recipe's settings through Optuna: pruned over seeds, in parallel, going on after any kill."""
