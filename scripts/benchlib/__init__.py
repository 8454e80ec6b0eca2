"""The bench of mmapfs: the same work on the bare directory and through every candidate, in turn.

`scripts/bench` starts it. One theme a file, imports point down:

    __main__     the command line and the order of events
    report       the results, as text and JSON
    targets      the targets, and whether they are reached
    run          rounds and the time budget
    workloads*   the rows: how each is timed, and how it is checked
    turn         one candidate's turn at one workload
    filesystems  how every candidate is mounted, watched and unmounted
    data         the files that all candidates work on
    results      rows, samples, and their arithmetic
    machine      programs, the probe (probe.c), the filesystem beneath
"""
