/* The gradients of PPO's loss on a part of a minibatch. The plain path, with the formulas in words, is ppo/loss.py and
 * lane_gradients in ppo/fast_policy.py. */
#include <stddef.h>

#include "mlp.h"

#define N_SUMS 6 /* loss.py: policy loss, squared error, approximate KL, clipped, entropy, KL */

typedef struct {
    const net *actor, *critic;
    const float *log_std;     /* (actions,); NULL: a Categorical */
    const float *old_log_std; /* (actions,), or NULL */
    float *log_std_grad;      /* (actions,), written without the entropy's */
    const float *table;       /* rows of observation, action, old value, old log-probability, advantage, return, old distribution */
    const int64_t *rows;      /* (n_rows,) of the table */
    const float *advantages;  /* (n_rows,), scaled */
    int64_t row_length, n_rows, n_all, action_columns, has_old;
    float clip_range, clip_range_vf, ent_coef, vf_coef; /* clip_range_vf below zero: none */
} ppo_part;

typedef struct { /* columns of a block, (ROWS,) each, zero where there is no row */
    float there[ROWS], old_values[ROWS], old_log_prob[ROWS], advantages[ROWS], returns[ROWS], scratch[ROWS];
    float *actions, *old, *out, *grad; /* (columns, ROWS) */
} columns;

typedef struct {
    workspace actor, critic;
    columns c;
    vec sums[N_SUMS];
    float *log_std_grad; /* (actions, LANES) */
} ppo_workspace;

static float *lay_out_columns(ppo_workspace *w, float *memory, long action_columns, long outputs) {
    w->c.actions = take(&memory, action_columns * ROWS);
    w->c.old = take(&memory, outputs * ROWS);
    w->c.out = take(&memory, outputs * ROWS);
    w->c.grad = take(&memory, outputs * ROWS);
    w->log_std_grad = take(&memory, outputs * LANES);
    return memory;
}

/* Floats of memory besides those of the networks. */
int64_t ppo_memory(int64_t action_columns, int64_t outputs) {
    ppo_workspace w;
    return (uintptr_t)lay_out_columns(&w, 0, action_columns, outputs) / sizeof(float);
}

static void fetch(const ppo_part *p, ppo_workspace *w, long start, long rows) {
    long obs_dim = p->critic->widths[0], first = obs_dim + p->action_columns, outputs = p->actor->widths[p->actor->n_layers];
    columns *c = &w->c;
    if (rows < ROWS) {
        memset(c, 0, offsetof(columns, actions));
        memset(c->actions, 0, sizeof(float) * p->action_columns * ROWS);
        memset(c->old, 0, sizeof(float) * outputs * ROWS);
        memset(c->out, 0, sizeof(float) * outputs * ROWS);
    }
    for (long r = 0; r < rows; r++) {
        const float *row = p->table + p->rows[start + r] * p->row_length;
        memcpy(inputs_of(p->critic, &w->critic, r), row, sizeof(float) * obs_dim);
        for (long j = 0; j < p->action_columns; j++) c->actions[j * ROWS + r] = row[obs_dim + j];
        c->there[r] = 1.0f;
        c->old_values[r] = row[first];
        c->old_log_prob[r] = row[first + 1];
        c->advantages[r] = p->advantages[start + r];
        c->returns[r] = row[first + 3];
        for (long j = 0; p->has_old && j < outputs; j++) c->old[j * ROWS + r] = row[first + 4 + j];
    }
}

static void value_gradient(const ppo_part *p, ppo_workspace *w, long rows) {
    const columns *c = &w->c;
    float *values = w->c.scratch, scale = 2.0f * p->vf_coef / (float)p->n_all, limit = p->clip_range_vf;
    for (long r = 0; r < rows; r++) values[r] = *outputs_of(p->critic, &w->critic, r);
    for (long r = 0; r < rows; r += LANES) {
        vec there = VEC(c->there + r), old = VEC(c->old_values + r), change = VEC(values + r) - old, grad;
        vec error = VEC(values + r) - VEC(c->returns + r);
        if (limit >= 0.0f) {
            vec within = larger(smaller(change, splat(limit)), splat(-limit));
            error = old + within - VEC(c->returns + r);
            grad = select_(within == change, error, splat(0.0f));
        } else {
            grad = error;
        }
        w->sums[1] += error * error * there;
        AT(values + r) = grad * scale;
    }
    memset(w->critic.grads[0], 0, sizeof(float) * rows * apart(1));
    for (long r = 0; r < rows; r++) *output_grads_of(p->critic, &w->critic, r) = values[r];
}

/* The clipped surrogate (policy_gradient in loss.py) of a vector of rows: the gradient with respect to log_ratio. */
INLINE vec surrogate(const ppo_part *p, ppo_workspace *w, long r, vec log_ratio, vec *approx_kl) {
    vec there = VEC(w->c.there + r), advantages = VEC(w->c.advantages + r);
    log_ratio = select_(there > 0.0f, log_ratio, splat(0.0f)); /* whose absence may be very improbable */
    vec ratio = select_(log_ratio > 88.72283f, splat(INFINITY), exp_(log_ratio));
    vec high = splat(1.0f + p->clip_range), low = splat(1.0f - p->clip_range);
    vec clipped = larger(smaller(ratio, high), low);
    vec loss = advantages * ratio, clipped_loss = advantages * clipped;
    ivec larger = loss >= clipped_loss;
    *approx_kl = ratio - 1.0f - log_ratio;
    w->sums[0] += select_(larger, loss, clipped_loss) * there;
    w->sums[2] += *approx_kl * there;
    w->sums[3] += select_(ratio != clipped, there, splat(0.0f));
    return select_(larger, loss, splat(0.0f)) * there;
}

static void gaussian_gradient(const ppo_part *p, ppo_workspace *w, long rows) {
    const long dim = p->actor->widths[p->actor->n_layers];
    const columns *c = &w->c;
    float total = 0.0f, kl_of_stds = 0.0f;
    for (long j = 0; j < dim; j++) {
        total += p->log_std[j];
        if (p->old_log_std) {
            float change = p->old_log_std[j] - p->log_std[j];
            kl_of_stds += 0.5f * expf(2.0f * change) - 0.5f - change;
        }
    }
    const float constant = total + (float)dim * 0.918938533f, entropy = constant + 0.5f * (float)dim;
    for (long r = 0; r < rows; r += LANES) {
        vec there = VEC(c->there + r), distance = {0}, moved = {0}, kl;
        for (long j = 0; j < dim; j++) {
            float inverse = expf(-p->log_std[j]);
            vec mean = VEC(c->out + j * ROWS + r), z = (VEC(c->actions + j * ROWS + r) - mean) * inverse;
            vec change = (VEC(c->old + j * ROWS + r) - mean) * inverse;
            AT(c->grad + j * ROWS + r) = z;
            distance += z * z;
            moved += change * change;
        }
        vec grad = surrogate(p, w, r, distance * -0.5f - (VEC(c->old_log_prob + r) + constant), &kl);
        w->sums[4] += entropy * there;
        if (p->has_old && p->old_log_std) kl = moved * 0.5f + kl_of_stds;
        w->sums[5] += kl * there;
        for (long j = 0; j < dim; j++) {
            vec z = VEC(c->grad + j * ROWS + r);
            AT(w->log_std_grad + j * LANES) += grad * (z * z - 1.0f);
            AT(c->grad + j * ROWS + r) = grad * z * expf(-p->log_std[j]);
        }
    }
}

static void categorical_gradient(const ppo_part *p, ppo_workspace *w, long rows) {
    const long n = p->actor->widths[p->actor->n_layers];
    const columns *c = &w->c;
    const float entropy_scale = p->ent_coef / (float)p->n_all;
    for (long r = 0; r < rows; r += LANES) {
        vec there = VEC(c->there + r), most = VEC(c->out + r), total = {0}, chosen = {0}, entropy = {0}, kl = {0}, approx_kl;
        for (long j = 1; j < n; j++) most = larger(most, VEC(c->out + j * ROWS + r));
        for (long j = 0; j < n; j++) total += exp_(VEC(c->out + j * ROWS + r) - most);
        for (int i = 0; i < LANES; i++) total[i] = logf(total[i]);
        for (long j = 0; j < n; j++) {
            vec log_p = VEC(c->out + j * ROWS + r) - most - total, old = VEC(c->old + j * ROWS + r);
            chosen += select_(VEC(c->actions + r) == (float)j, log_p, splat(0.0f));
            entropy -= exp_(log_p) * log_p;
            kl += exp_(old) * (old - log_p);
            AT(c->out + j * ROWS + r) = log_p;
        }
        vec grad = surrogate(p, w, r, chosen - VEC(c->old_log_prob + r), &approx_kl);
        w->sums[4] += entropy * there;
        w->sums[5] += (p->has_old ? kl : approx_kl) * there;
        for (long j = 0; j < n; j++) {
            vec log_p = VEC(c->out + j * ROWS + r), prob = exp_(log_p);
            vec one = select_(VEC(c->actions + r) == (float)j, splat(1.0f), splat(0.0f));
            AT(c->grad + j * ROWS + r) = (one - prob) * grad + prob * (log_p + entropy) * entropy_scale * there;
        }
    }
}

/* Write the gradients of a part of a minibatch, as if the minibatch had n_all rows, and add its statistics to sums.
 * memory: of both networks, and ppo_memory() floats. For the other arguments see ppo_part. */
void ppo_gradients(const net *actor, const net *critic, const float *log_std, const float *old_log_std, float *log_std_grad,
                   const float *table, int64_t row_length, int64_t action_columns, int64_t has_old, const int64_t *rows,
                   const float *advantages, int64_t n_rows, int64_t n_all, float clip_range, float clip_range_vf, float ent_coef,
                   float vf_coef, float *sums, float *memory) {
    const ppo_part part = {actor,     critic,    log_std,    old_log_std,    log_std_grad, table,         rows,     advantages, row_length,
                           n_rows,    n_all,     action_columns, has_old,    clip_range,   clip_range_vf, ent_coef, vf_coef};
    const ppo_part *p = &part;
    ppo_workspace w;
    const long outputs = p->actor->widths[p->actor->n_layers], obs_dim = p->actor->widths[0];
    memset(&w, 0, sizeof w);
    lay_out_columns(&w, lay_out(p->actor, &w.actor, lay_out(p->critic, &w.critic, memory, 1), 1), p->action_columns, outputs);
    prepare(p->critic, &w.critic, 1);
    prepare(p->actor, &w.actor, 1);
    memset(w.log_std_grad, 0, sizeof(float) * outputs * LANES);
    memset(w.c.old, 0, sizeof(float) * outputs * ROWS);
    for (long start = 0; start < p->n_rows; start += ROWS) {
        long rows = p->n_rows - start < ROWS ? p->n_rows - start : ROWS;
        fetch(p, &w, start, rows);
        forward_block(p->critic, &w.critic, rows);
        value_gradient(p, &w, rows);
        backward_block(p->critic, &w.critic, rows, 1, 0);
        for (long r = 0; r < rows; r++)
            memcpy(inputs_of(p->actor, &w.actor, r), inputs_of(p->critic, &w.critic, r), sizeof(float) * obs_dim);
        forward_block(p->actor, &w.actor, rows);
        for (long r = 0; r < rows; r++)
            for (long j = 0; j < outputs; j++) w.c.out[j * ROWS + r] = outputs_of(p->actor, &w.actor, r)[j];
        if (p->log_std)
            gaussian_gradient(p, &w, rows);
        else
            categorical_gradient(p, &w, rows);
        memset(w.actor.grads[0], 0, sizeof(float) * rows * apart(outputs));
        for (long r = 0; r < rows; r++)
            for (long j = 0; j < outputs; j++) output_grads_of(p->actor, &w.actor, r)[j] = w.c.grad[j * ROWS + r];
        backward_block(p->actor, &w.actor, rows, 1, 0);
    }
    write_gradients(p->critic, &w.critic);
    write_gradients(p->actor, &w.actor);
    for (long j = 0; p->log_std_grad && j < outputs; j++) p->log_std_grad[j] = sum_of(VEC(w.log_std_grad + j * LANES));
    for (int k = 0; k < N_SUMS; k++) sums[k] += sum_of(w.sums[k]);
}

/* What each row's probability ratio adds to the policy loss, see scaled_advantages in loss.py.
 * moments: mean and standard deviation, or NULL: those of the rows. */
void ppo_scale(const float *table, int64_t row_length, int64_t column, const int64_t *rows, int64_t n, int normalize,
               const float *moments, float *scaled) {
    double mean = 0.0, square = 0.0, std = 1.0;
    for (long i = 0; i < n; i++) mean += scaled[i] = table[rows[i] * row_length + column];
    mean /= (double)n;
    for (long i = 0; i < n; i++) square += (scaled[i] - mean) * (scaled[i] - mean);
    if (normalize && moments) {
        mean = moments[0], std = moments[1] + 1e-8;
    } else if (normalize && n > 1) {
        std = sqrt(square / (double)(n - 1)) + 1e-8;
    } else {
        mean = 0.0;
    }
    for (long i = 0; i < n; i++) scaled[i] = (float)((scaled[i] - mean) * (-1.0 / (double)n / std));
}
