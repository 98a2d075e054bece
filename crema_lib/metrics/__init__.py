"""How good scores are, and how sure that is: metrics, intervals, comparisons, thresholds, calibration, the Challenge metric."""

from .bootstrap import Interval, holm, interval, p_value, patient_counts
from .comparison import REFLECTED, Comparison, compare
from .scores import FEW, METRICS, TITLES, auprc, auroc, brier, ece, f1, log_loss, macro, precision, sensitivity, specificity
