"""Options of the shipped agents. Imports no torch: ``--help`` lists them from here."""
