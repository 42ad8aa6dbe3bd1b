"""Every tolerance of the tests, written once (design section 6)."""

FP32 = 1e-5  # absolute, between two fp32 paths to the same numbers
TENSORS = 1e-6  # absolute, before uint8: tensors in and out against files in and out
RANKS = 1e-6  # relative to the largest absolute value of the tensor, fp32 over processes against one in fp64
BF16_FORWARD = 1e-2
BF16_GRADIENT = 5e-2
RELEASED = 1e-4  # relative to the largest absolute value of the tensor, against the published code
ROUNDING_MARGIN = 1e-4  # codes must be equal where the value is farther than this from a rounding boundary
GSPLAT = 2e-3  # mean absolute difference: approximate exponentials, another rule at the last Gaussian of a pixel
CURVE = 1e-4  # relative above 1: a loss after up to 30 steps on another machine
BAG = 1e-2  # cosine: attention of a new text side is nearly even, not quite
LEAST_SQUARES = 1e-9  # float64, between two ways to the same least squares
LBFGS = 1e-5  # scores of a classifier, between two searches for one minimum
MOMENTS = 1e-6  # relative, distances and scores of features against second implementations
SHARDS = 1e-9  # relative, sums of shards against those of a single pass
PIXEL = 1  # of 255: two fp32 paths to one value may round to neighbours
SAMPLED = 1e-2  # of 255: coefficients kept as fp32 against fp64
EXACT = 0.0  # a refactor, a round trip
