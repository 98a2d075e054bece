"""The figures of the book: pure functions of arrays and tables that return a matplotlib Figure.

One style: as wide as the text column, colours of Okabe and Ito (2008) that colour-blind readers can tell apart, a unit on every axis.
Signals are float mV arrays, twelve leads in the order of `crema_lib.leads.LEADS`; times are seconds.
"""

from .calibration import reliability
from .costs import speeds, time_shares
from .dose import dose, drops
from .efficiency import label_efficiency
from .leads import by_leads
from .leakage import closest
from .maps import scatter_html, umap_panels
from .objectives import by_layer, likeness, score_panels
from .paper import ecg, superclasses
from .results import beside, tried
from .scores import CHANCE, comparison, curves, label_forest
from .shift import away, net_benefit
from .signals import attention, positions, reconstruction, spectra, tokens
from .style import BLUE, GREY, INK, OKABE_ITO, SHADE, STYLE, VERMILLION, WIDTH, use_style
from .trust import flags, foretold, remedies, risk_coverage
from .why import covariate_curves, risk_parts
