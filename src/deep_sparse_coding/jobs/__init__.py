"""What the codes are good for: images without noise, without holes, and what stands behind a code."""

from .anomaly import anomaly_map as anomaly_map
from .denoise import Denoised as Denoised
from .denoise import denoise as denoise
from .explain import Explanation as Explanation
from .explain import explain as explain
from .explain_figures import plot_anomaly as plot_anomaly
from .explain_figures import plot_explanation as plot_explanation
from .inpaint import Inpainted as Inpainted
from .inpaint import inpaint as inpaint
from .noise import estimate_noise as estimate_noise
