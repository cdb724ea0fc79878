"""Analysis of runs and models: losses, report, probes, cost, plan, units."""
