"""Plan minus ledger: start workers as processes, wait, retry, record. Never imports `sweep.train`."""
