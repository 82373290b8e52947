/* A step of the cartpole with its resets, several cartpoles at once. The plain path, with the physics in words, is integrate in
 * backends/physics.py and finish_step in backends/cartpole.py. */
#include "mlp.h"

typedef struct { /* fused_cartpole.py has the same */
    float h, max_cart_speed, max_pole_speed, pole_moment, torque_damping, determinant, cart_gain, pole_gain, cart_step, pole_step,
        track_limit, stopped_gain, stopped_velocity, max_effort, reset_dist, reset_angle;
    int32_t substeps;
    int64_t max_episode_length;
} cartpole_task;

INLINE vec absolute(vec x) { return (vec)((ivec)x & ~(ivec)splat(-0.0f)); }

/* Sine and cosine: a polynomial of what is left when multiples of pi / 2 are taken off, in three parts whose products are exact. */
INLINE void sin_cos(vec x, vec *sine, vec *cosine) {
    const vec round = splat(12582912.0f);
    vec n = x * 0.636619772f + round;
    ivec quarter = (ivec)n;
    n -= round;
    vec r = x - n * 1.5703125f - n * 4.837512969970703125e-4f - n * 7.54978995489188216e-8f, t = r * r;
    vec s = t * -1.9515295891e-4f + 8.3321608736e-3f, c = t * 2.443315711809948e-5f - 1.388731625493765e-3f;
    s = s * t - 1.6666654611e-1f, c = c * t + 4.166664568298827e-2f;
    s = s * t * r + r, c = c * t * t - t * 0.5f + 1.0f;
    ivec odd = (quarter & 1) != 0;
    vec sin_part = select_(odd, c, s), cos_part = select_(odd, s, c);
    *sine = (vec)((ivec)sin_part ^ ((quarter & 2) << 30));
    *cosine = (vec)((ivec)cos_part ^ (((quarter + 1) & 2) << 30));
}

/* For LANES cartpoles: x, v, angle and w after a control step. */
INLINE void integrate(const cartpole_task *p, vec force, vec *x, vec *v, vec *angle, vec *w) {
    for (int i = 0; i < p->substeps; i++) {
        vec excess = larger(larger(absolute(*v) / p->max_cart_speed, absolute(*w) / p->max_pole_speed), splat(1.0f)), sine, cosine;
        *v /= excess;
        *w /= excess;
        sin_cos(*angle, &sine, &cosine);
        vec f = force - p->pole_moment * sine * (*w * *w);
        vec torque = sine - p->torque_damping * *w;
        vec det = 1.0f - p->determinant * cosine * cosine;
        vec new_v = *v + p->cart_step * (f + p->cart_gain * cosine * torque) / det;
        vec new_w = *w + p->pole_step * (cosine * f + p->pole_gain * torque) / det;
        vec free_x = *x + p->h * new_v;
        *x = larger(smaller(free_x, splat(p->track_limit)), splat(-p->track_limit));
        ivec stopped = *x != free_x;
        vec stopped_w = *w + p->stopped_gain * torque + p->stopped_velocity * cosine * *v;
        *w = select_(stopped, stopped_w, new_w);
        *v = select_(stopped, splat(0.0f), new_v);
        *angle += p->h * *w;
    }
}

/* dof_state (n, 4) and progress (n,) are updated, uniform is (n, 4), reset_width (4,); written are final_obs and obs (n, 4),
 * reward and force (n,), terminated and truncated (n,) bytes. */
void cartpole_step(const cartpole_task *p, int64_t n, float *dof_state, int64_t *progress, const float *actions,
                   const float *uniform, const float *reset_width, float *final_obs, float *obs, float *reward, float *force,
                   uint8_t *terminated, uint8_t *truncated) {
    for (long start = 0; start < n; start += LANES) {
        long some = n - start < LANES ? n - start : LANES;
        vec x = {0}, v = {0}, angle = {0}, w = {0}, action = {0};
        for (long i = 0; i < some; i++) {
            const float *state = dof_state + 4 * (start + i);
            x[i] = state[0], v[i] = state[1], angle[i] = state[2], w[i] = state[3];
            action[i] = actions[start + i];
        }
        vec effort = larger(smaller(action, splat(1.0f)), splat(-1.0f)) * p->max_effort;
        integrate(p, effort, &x, &v, &angle, &w);
        ivec failed = (absolute(x) > p->reset_dist) | (absolute(angle) > p->reset_angle);
        vec gained = select_(failed, splat(-2.0f), 1.0f - angle * angle - 0.01f * absolute(v) - 0.005f * absolute(w));
        for (long i = 0; i < some; i++) {
            long e = start + i;
            float *last = final_obs + 4 * e;
            last[0] = x[i], last[1] = v[i], last[2] = angle[i], last[3] = w[i];
            force[e] = effort[i];
            reward[e] = gained[i];
            terminated[e] = failed[i] != 0;
            truncated[e] = ++progress[e] >= p->max_episode_length - 1 && !failed[i];
            int done = terminated[e] || truncated[e];
            if (done) progress[e] = 0;
            for (int k = 0; k < 4; k++)
                dof_state[4 * e + k] = obs[4 * e + k] = done ? (uniform[4 * e + k] - 0.5f) * reset_width[k] : last[k];
        }
    }
}
