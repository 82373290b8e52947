/* clip_and_step_counted_ of device/flat_adam.py in one pass. */
#include <math.h>
#include <stdint.h>

void adam_step(float *flat, float *grad, float *exp_avg, float *exp_avg_sq, int64_t n, double steps, double lr, double beta1,
               double beta2, double eps, double max_norm) {
    float scale = 1.0f;
    if (isfinite(max_norm)) {
        double square = 0.0;
        for (long start = 0; start < n; start += 64) { /* sums of eight at once, which the compiler can vectorise */
            float parts[8] = {0};
            for (long i = start; i < n && i < start + 64; i++) parts[i % 8] += grad[i] * grad[i];
            for (int k = 0; k < 8; k++) square += parts[k];
        }
        scale = (float)(max_norm / (sqrt(square) + 1e-6));
        scale = scale > 1.0f ? 1.0f : scale;
    }
    const float b1 = (float)(1.0 - beta1), b2 = (float)beta2, c2 = (float)(1.0 - beta2), e = (float)eps;
    const float root = (float)sqrt(1.0 - pow(beta2, steps)), rate = (float)(lr / (1.0 - pow(beta1, steps)));
    for (long i = 0; i < n; i++) {
        float g = grad[i] * scale, average = exp_avg[i] + b1 * (g - exp_avg[i]), square = exp_avg_sq[i] * b2 + c2 * g * g;
        grad[i] = g;
        exp_avg[i] = average;
        exp_avg_sq[i] = square;
        flat[i] -= rate * average / (sqrtf(square) / root + e);
    }
}
