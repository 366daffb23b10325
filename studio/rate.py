"""How fast a stage of a job goes, and when it will be through."""

import math

# The rate is the mean over about this many seconds of the recent past.
RATE_SECONDS = 15.0


class Rate:
    """Seconds a unit of the current stage takes, the recent past counting most."""

    def __init__(self, now: float, done: int) -> None:
        self.time, self.done = now, done
        self.seconds = self.units = 0.0
        self.last_units = 0

    def add(self, now: float, done: int) -> None:
        if done <= self.done:
            return
        passed, units = now - self.time, done - self.done
        fade = math.exp(-passed / RATE_SECONDS)
        self.seconds = fade * self.seconds + passed
        self.units = fade * self.units + units
        self.time, self.done, self.last_units = now, done, units

    def eta(self, now: float, total: int) -> float | None:
        """Seconds until `total`; while a step is late, what is left after it."""
        if not self.units or total <= 0:
            return None
        unit, left = self.seconds / self.units, max(0, total - self.done)
        return max(0.0, left * unit - (now - self.time), (left - self.last_units) * unit)
