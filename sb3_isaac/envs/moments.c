/* VecNormalize's statistics and what it makes of a step. The plain path is envs/running_mean_std.py, which has the source of the
 * formulas, and VecNormalize.step_tensor. */
#include "normalize.h"
#include <math.h>
#include <stdint.h>

/* RunningMoments.update. batch: (columns, n); the others are (columns,), updated, but for epsilon. */
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

/* A step of n environments. batch: (columns + 1, n), room for observations, and the returns so far. The statistics have a column
 * for each of those and follow the step if it is in training; what is written is normalised, if the pointer is not NULL. */
void normalize_step(int64_t n, int64_t columns, const float *obs, const float *final_obs, const float *reward,
                    const uint8_t *dones, int training, double gamma, float clip_obs, float clip_reward, double *batch,
                    double *mean, double *var, double *count, const double *epsilon, float *scale, float *offset,
                    float *normalized_obs, float *normalized_final_obs, float *normalized_reward) {
    double *returns = batch + columns * n;
    if (training) {
        long first = normalized_obs ? 0 : columns;
        for (long i = 0; i < n; i++) returns[i] = returns[i] * gamma + reward[i];
        for (long k = first; k < columns; k++)
            for (long i = 0; i < n; i++) batch[k * n + i] = obs[i * columns + k];
        update_moments(batch + first * n, columns + 1 - first, n, mean + first, var + first, count + first, epsilon + first,
                       scale + first, offset + first);
    }
    for (long i = 0, at = 0; i < n; i++, at += columns) {
        if (dones[i]) returns[i] = 0.0;
        if (normalized_reward) normalized_reward[i] = clipped(reward[i] * scale[columns], clip_reward);
        if (!normalized_obs) continue;
        normalize(obs + at, columns, scale, offset, clip_obs, normalized_obs + at);
        normalize(final_obs + at, columns, scale, offset, clip_obs, normalized_final_obs + at);
    }
}
