from rlcore.cli_tune import tune

if __name__ == "__main__":
    tune()
