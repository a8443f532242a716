"""What the parts cost, measured: each file is a command, `RESULTS.md` keeps what they printed."""
