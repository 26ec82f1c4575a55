"""Loaded by the workers of most schedules: shortens a wait that is long by design, as their leases are
shortened.

A message counts as lost after half a minute. A schedule in which one is lost would do nothing else; some do
wait, see `Plan.patient`.
"""

from worker.db import messages_sent

LOST_AFTER_S = 3.0

messages_sent._LOST_AFTER_S = LOST_AFTER_S
