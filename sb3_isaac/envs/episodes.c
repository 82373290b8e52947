/* What IsaacVecEnv.step_tensor keeps of a step, as it says in tensors. */
#include <math.h>
#include <stdint.h>

static int finite_sum(const float *x, int64_t n) {
    float sums[8] = {0}, sum = 0.0f;
    long whole = n / 8 * 8;
    for (long i = 0; i < whole; i += 8)
        for (long k = 0; k < 8; k++) sums[k] += x[i + k];
    for (long i = whole; i < n; i++) sum += x[i];
    for (long k = 0; k < 8; k++) sum += sums[k];
    return isfinite(sum);
}

/* obs and final_obs: (n, columns), the others (n,); dones, returns and lengths are updated. Returns 0, and changes nothing, if
 * there may be a number that is not finite: none is if the sums are. */
int64_t note_step(int64_t n, int64_t columns, const float *obs, const float *final_obs, const float *reward,
                  const uint8_t *terminated, const uint8_t *truncated, uint8_t *dones, float *returns, int64_t *lengths) {
    if (!finite_sum(reward, n) || !finite_sum(final_obs, n * columns) || !finite_sum(obs, n * columns)) return 0;
    for (long i = 0; i < n; i++) {
        returns[i] = (dones[i] ? 0.0f : returns[i]) + reward[i];
        lengths[i] = (dones[i] ? 0 : lengths[i]) + 1;
        dones[i] = terminated[i] || truncated[i];
    }
    return 1;
}
