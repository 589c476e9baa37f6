"""Settings of hypothesis for the unit tests."""

from hypothesis import HealthCheck, settings

# No test depends on the speed of the machine, and a busy machine may pause while an example is drawn.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
