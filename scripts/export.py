from rlcore.cli_export import export

if __name__ == "__main__":
    export()
