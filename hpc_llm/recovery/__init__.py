"""What ended an attempt and what to do about it: the policy that supervisor, watchdog and status
share.
"""
