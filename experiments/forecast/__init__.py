"""Forecasts the series of a CSV file, with intervals, a backtest, and baselines to beat."""
