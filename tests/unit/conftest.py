"""How hypothesis draws examples here."""

from hypothesis import HealthCheck, settings

# No test depends on how fast the machine is, and a busy one may stand still while an example is drawn.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
