/* Observations as VecNormalize makes them. */
#ifndef SB3_ISAAC_NORMALIZE_H
#define SB3_ISAAC_NORMALIZE_H

static inline float clipped(float x, float clip) { return x > clip ? clip : x < -clip ? -clip : x; } /* NaN stays */

/* One observation of so many columns. */
static inline void normalize(const float *x, long columns, const float *scale, const float *offset, float clip, float *y) {
    for (long k = 0; k < columns; k++) y[k] = clipped(offset[k] + x[k] * scale[k], clip);
}

#endif
