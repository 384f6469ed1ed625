"""Attribution methods other than LRP, to compare with; each stands where a composite does.

>>> lrp(model, x, target, IntegratedGradients(steps=50))
>>> SmoothGrad(EpsilonPlus(), samples=20)(model, x, target)
"""

from lrphooks.baselines.base import Baseline
from lrphooks.baselines.gradcam import GradCAM
from lrphooks.baselines.gradient import Gradient, InputXGradient
from lrphooks.baselines.integrated import IncompleteWarning, IntegratedGradients
from lrphooks.baselines.occlusion import Occlusion
from lrphooks.baselines.smoothgrad import SmoothGrad

__all__ = [
    "Baseline",
    "GradCAM",
    "Gradient",
    "IncompleteWarning",
    "InputXGradient",
    "IntegratedGradients",
    "Occlusion",
    "SmoothGrad",
]
