"""Judging explanations: each metric is a value that judges any method on the rows of an input.

>>> metric = SymmetricRelevanceGain(patch=16, infill=Blur(10))
>>> ours = metric(model, images, labels, EpsilonPlusFlat())
>>> theirs = metric(model, images, labels, lambda model, x, target: other_library(model, x, target))
>>> print(difference(ours, theirs))

Faithfulness: :class:`PixelFlipping`, :class:`SymmetricRelevanceGain`, :class:`Deletion`, :class:`Insertion`.
Localisation: :class:`PointingGame`, :class:`RelevanceMass`, :class:`RelevanceRank`, :class:`GridPointingGame` on
:func:`mosaics`. Complexity: :class:`Sparseness`, :class:`Complexity`. Robustness: :class:`MaxSensitivity`.
Randomisation: :class:`ParameterRandomisation`. Conservation: :class:`ConservationError`. :func:`tune`
chooses the parameters of a composite by any of them.
"""

from lrphooks.evaluation.complexity import Complexity, Sparseness
from lrphooks.evaluation.flipping import Deletion, Insertion, PixelFlipping, SymmetricRelevanceGain
from lrphooks.evaluation.infill import Blur, Constant, Infill, Inpainting, Mean, Noise
from lrphooks.evaluation.localisation import GridPointingGame, PointingGame, RelevanceMass, RelevanceRank
from lrphooks.evaluation.method import Judged, Method
from lrphooks.evaluation.metric import Metric
from lrphooks.evaluation.mosaics import Mosaics, mosaics
from lrphooks.evaluation.randomisation import ParameterRandomisation
from lrphooks.evaluation.result import Difference, Result, difference
from lrphooks.evaluation.robustness import ConservationError, MaxSensitivity
from lrphooks.evaluation.tuning import Space, Trial, Tuning, tune

__all__ = [
    "Blur",
    "Complexity",
    "ConservationError",
    "Constant",
    "Deletion",
    "Difference",
    "GridPointingGame",
    "Infill",
    "Inpainting",
    "Insertion",
    "Judged",
    "MaxSensitivity",
    "Mean",
    "Method",
    "Metric",
    "Mosaics",
    "Noise",
    "ParameterRandomisation",
    "PixelFlipping",
    "PointingGame",
    "RelevanceMass",
    "RelevanceRank",
    "Result",
    "Space",
    "Sparseness",
    "SymmetricRelevanceGain",
    "Trial",
    "Tuning",
    "difference",
    "mosaics",
    "tune",
]
