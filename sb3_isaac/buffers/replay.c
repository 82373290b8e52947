/* Rows of a replay buffer, in and out. The plain path is DeviceReplayBuffer (pack, at), which says it in words. */
#include "../envs/normalize.h"
#include <stdint.h>
#include <string.h>

#define RUNNING 0.0f
#define TERMINATED 1.0f
#define TRUNCATED 2.0f
#define AHEAD 8 /* Rows of so many transitions are on their way from memory at once */

static void copy_obs(const float *x, int64_t n, const float *scale, const float *offset, float clip, float *y) {
    if (scale) normalize(x, n, scale, offset, clip, y);
    else memcpy(y, x, sizeof(float) * n);
}

/* A step of n environments: row is (n, 2 * obs_dim + action_dim + 2), written; the others are (n, ...). */
void replay_pack(int64_t n, int64_t obs_dim, int64_t action_dim, const float *obs, const float *actions, const float *rewards,
                 const uint8_t *terminated, const uint8_t *truncated, const float *next_obs, float *row) {
    for (long i = 0; i < n; i++) {
        memcpy(row, obs + i * obs_dim, sizeof(float) * obs_dim);
        memcpy(row += obs_dim, actions + i * action_dim, sizeof(float) * action_dim);
        row += action_dim;
        *row++ = rewards[i];
        *row++ = terminated[i] ? TERMINATED : truncated[i] ? TRUNCATED : RUNNING;
        memcpy(row, next_obs + i * obs_dim, sizeof(float) * obs_dim);
        row += obs_dim;
    }
}

/* The transitions at index (n,): normalised where scale and offset (obs_dim,) or reward_scale (1,) are not NULL, with returns
 * of n_steps rewards and the discounts (if not NULL) that belong to them. table: (n_rows * n_envs, width); newest: the row of
 * the newest ones; time_limits: whether to bootstrap behind them. The other six are written. Returns how many of the indices
 * there are not, and then writes nothing. */
int64_t replay_samples(const float *table, int64_t obs_dim, int64_t action_dim, int64_t width, int64_t n_rows, int64_t n_envs,
                       const int64_t *index, int64_t n, int64_t n_steps, double gamma, int64_t newest, int time_limits,
                       const float *scale, const float *offset, float clip_obs, const float *reward_scale, float clip_reward,
                       float *obs, float *actions, float *next_obs, float *dones, float *returns, float *discounts) {
    const long total_rows = n_rows * n_envs, reward_at = obs_dim + action_dim;
    const int has_next_obs = width > reward_at + 2;
    long missing = 0;
    for (long i = 0; i < n; i++) missing += index[i] < 0 || index[i] >= total_rows;
    if (missing) return missing;
    for (long i = 0; i < n; i++) {
        if (i + AHEAD < n)
            for (long k = 0, at = index[i + AHEAD]; k < n_steps; k++) {
                __builtin_prefetch(table + at * width + reward_at);
                at = at + n_envs < total_rows ? at + n_envs : at + n_envs - total_rows;
            }
        long at = index[i], left = newest - at / n_envs;
        left = left < 0 ? left + n_rows : left;
        const float *row = table + at * width;
        copy_obs(row, obs_dim, scale, offset, clip_obs, obs + i * obs_dim);
        memcpy(actions + i * action_dim, row + obs_dim, sizeof(float) * action_dim);
        float total = 0.0f, weight = 1.0f;
        double discount = gamma;
        for (long extra = 0;;) {
            float reward = row[reward_at];
            total += weight * (reward_scale ? clipped(reward * *reward_scale, clip_reward) : reward);
            if (++extra == n_steps || extra > left || row[reward_at + 1] != RUNNING) break;
            weight *= (float)gamma;
            if (!(weight > 0.0f)) break;
            discount *= gamma;
            at = at + n_envs < total_rows ? at + n_envs : at + n_envs - total_rows;
            row = table + at * width;
        }
        float flag = row[reward_at + 1];
        long next = at + n_envs < total_rows ? at + n_envs : at + n_envs - total_rows;
        const float *last_obs = has_next_obs ? row + reward_at + 2 : table + next * width;
        copy_obs(last_obs, obs_dim, scale, offset, clip_obs, next_obs + i * obs_dim);
        dones[i] = time_limits ? flag == TERMINATED : flag > RUNNING;
        returns[i] = total;
        if (discounts) discounts[i] = (float)discount;
    }
    return 0;
}
