"""The bench of mmapfs: the same work on the bare directory and through every candidate, in turn.

`scripts/bench` starts it. One theme a file, imports point down:

    __main__     the command line and the order of events
    report_*     what was measured, as text, Markdown, JSON and SVG
    targets      what must be reached
    run          rounds, turns, the time budget
    workloads_*  the rows: what is timed, and how it is checked
    turn         one candidate's turn at one workload
    filesystems  how every candidate is mounted, watched and unmounted
    data         the files that everybody works on
    disk         the filesystem that they lie on
    shell        processes with a time limit, and the probe (probe.c)
    machine      what it was measured on
    rows, stats  words and arithmetic that all of these share
"""
