"""FID, KID and IS, and the feature extractors that they are measured with."""

from lit_ddpm.metrics.digits_features import DigitsFeatures
from lit_ddpm.metrics.features import FeatureExtractor
from lit_ddpm.metrics.fid import RealStatistics, sample_metrics
from lit_ddpm.metrics.inception import InceptionFeatures

__all__ = ["DigitsFeatures", "FeatureExtractor", "InceptionFeatures", "RealStatistics", "sample_metrics"]
