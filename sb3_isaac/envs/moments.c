/* RunningMoments.update of envs/running_mean_std.py, which has the source of the formulas. */
#include <math.h>
#include <stdint.h>

/* batch: (columns, n); the others are (columns,), updated, but for epsilon. */
void update_moments(const double *batch, int64_t columns, int64_t n, double *mean, double *var, double *count,
                    const double *epsilon, float *scale, float *offset) {
    for (long k = 0; k < columns; k++, batch += n) {
        double sums[4] = {0}, squares[4] = {0}, batch_mean, batch_var; /* four at once, which a vector holds */
        for (long i = 0; i < n; i++) sums[i % 4] += batch[i];
        batch_mean = (sums[0] + sums[1] + sums[2] + sums[3]) / (double)n;
        for (long i = 0; i < n; i++) squares[i % 4] += (batch[i] - batch_mean) * (batch[i] - batch_mean);
        batch_var = (squares[0] + squares[1] + squares[2] + squares[3]) / (double)n;
        count[k] += (double)n;
        if (batch_var < INFINITY) { /* else there is NaN or infinity in the column */
            double weight = (double)n / count[k], delta = batch_mean - mean[k];
            mean[k] += delta * weight;
            var[k] += weight * (batch_var + delta * (batch_mean - mean[k]) - var[k]);
        }
        double factor = 1.0 / sqrt(var[k] + epsilon[k]);
        scale[k] = (float)factor;
        offset[k] = (float)(-mean[k] * factor);
    }
}
