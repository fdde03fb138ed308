from rlcore.cli_runs import runs

if __name__ == "__main__":
    runs()
