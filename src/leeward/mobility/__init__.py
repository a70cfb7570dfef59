"""Getting a running VM's writes off its host: tap, sweep, cut, upload, and who decides which.

Imports nothing here: tap and watchdog are small processes that start from this package and must
stay small.
"""
