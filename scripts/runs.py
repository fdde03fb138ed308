from rlcore.cli import list_runs

if __name__ == "__main__":
    list_runs()
