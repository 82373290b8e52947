/* n-step returns of transitions in a replay buffer. The plain path is DeviceReplayBuffer._n_step_returns, which says it in words. */
#include <stdint.h>

#define RUNNING 0.0f

/* table: (n_rows * n_envs, width), a reward in column reward_at and a flag after it. index: (n,) of the first transitions.
 * newest: row of the newest ones. Written: returns and discounts (n,), and last (n,), the index of the last transition summed. */
void n_step_returns(const float *table, int64_t width, int64_t reward_at, int64_t n_rows, int64_t n_envs, const int64_t *index,
                    int64_t n, int64_t n_steps, double gamma, int64_t newest, float *returns, float *discounts, int64_t *last) {
    const long total_rows = n_rows * n_envs;
    for (long i = 0; i < n; i++) {
        long at = index[i], left = newest - at / n_envs, extra = 0;
        const float *row = table + at * width + reward_at;
        float total = row[0], weight = 1.0f;
        double discount = gamma;
        left = left < 0 ? left + n_rows : left;
        while (extra + 1 < n_steps && extra + 1 <= left && row[1] == RUNNING) {
            weight *= (float)gamma;
            if (!(weight > 0.0f)) break;
            at = at + n_envs < total_rows ? at + n_envs : at + n_envs - total_rows;
            row = table + at * width + reward_at;
            total += weight * row[0];
            discount *= gamma;
            extra++;
        }
        returns[i] = total;
        discounts[i] = (float)discount;
        last[i] = at;
    }
}
