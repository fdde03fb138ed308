"""How fast we are beside other libraries: one file a library, each run in a process of its own.

`peer` is all that they share; `parts` says what is measured with which settings; `harness` runs it, `page` writes.
"""
