"""How simplenet's backbone is made small."""

SMALL = {"simplenetv1_5m_m2": {"scale": 0.125}}
