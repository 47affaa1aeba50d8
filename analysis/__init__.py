"""Everything that spends no compute: a table of runs -> fit -> backtest -> predict -> report."""
