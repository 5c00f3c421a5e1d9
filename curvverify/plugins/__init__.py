"""Bridges to other verifiers: their answers checked, their scripts run, bounds given to them and taken from them."""
