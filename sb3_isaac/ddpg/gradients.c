/* What DDPG does with its networks in an update. The plain path is ddpg/fast_policy.py. */
#include "mlp.h"

/* Observations and actions as a critic's inputs. */
static void join(const net *critic, workspace *w, const float *obs, long ld_obs, long obs_dim, const float *actions, long ld_actions,
                 long action_dim, long rows) {
    for (long r = 0; r < rows; r++) {
        memcpy(inputs_of(critic, w, r), obs + r * ld_obs, sizeof(float) * obs_dim);
        memcpy(inputs_of(critic, w, r) + obs_dim, actions + r * ld_actions, sizeof(float) * action_dim);
    }
}

/* Write (n_rows,), what the target networks think of next observations: the lowest of the critics.
 * noise: (n_rows, action_dim) to add to the actor's actions, or NULL. memory: of the actor and one critic. */
void td3_values(const net *actor, const net *critics, int64_t n_critics, const float *obs, int64_t ld, const float *noise,
                int64_t n_rows, float *values, float *memory) {
    workspace a, c;
    const long dim = actor->widths[actor->n_layers], obs_dim = actor->widths[0];
    memory = lay_out(actor, &a, memory, 0);
    lay_out(critics, &c, memory, 0);
    for (long k = 0; k < n_critics; k++) {
        prepare(actor, &a, 0);
        prepare(critics + k, &c, 0);
        for (long start = 0; start < n_rows; start += ROWS) {
            long rows = n_rows - start < ROWS ? n_rows - start : ROWS;
            fetch_inputs(actor, &a, obs + start * ld, ld, rows);
            forward_block(actor, &a, rows);
            for (long r = 0; noise && r < rows; r++)
                for (long j = 0; j < dim; j++) {
                    float action = outputs_of(actor, &a, r)[j] + noise[(start + r) * dim + j];
                    outputs_of(actor, &a, r)[j] = action > 1.0f ? 1.0f : action < -1.0f ? -1.0f : action;
                }
            join(critics + k, &c, obs + start * ld, ld, obs_dim, outputs_of(actor, &a, 0), apart(dim), dim, rows);
            forward_block(critics + k, &c, rows);
            for (long r = 0; r < rows; r++) {
                float value = *outputs_of(critics + k, &c, r), *lowest = values + start + r;
                if (k == 0 || !(value >= *lowest)) *lowest = *lowest == *lowest || k == 0 ? value : *lowest; /* NaN stays */
            }
        }
    }
}

/* Write the gradients of the critics' squared errors on a part of a minibatch of n_all rows, and add the losses to *loss.
 * memory: of one critic. */
void critic_gradients(const net *critics, int64_t n_critics, const float *obs, int64_t ld_obs, const float *actions,
                      int64_t ld_actions, int64_t action_dim, const float *targets, int64_t n_rows, int64_t n_all, float *loss,
                      float *memory) {
    double total = 0.0;
    const float scale = 2.0f / (float)n_all;
    for (const net *critic = critics; critic < critics + n_critics; critic++) {
        workspace w;
        lay_out(critic, &w, memory, 1);
        prepare(critic, &w, 1);
        for (long start = 0; start < n_rows; start += ROWS) {
            long rows = n_rows - start < ROWS ? n_rows - start : ROWS, obs_dim = critic->widths[0] - action_dim;
            join(critic, &w, obs + start * ld_obs, ld_obs, obs_dim, actions + start * ld_actions, ld_actions, action_dim, rows);
            forward_block(critic, &w, rows);
            memset(w.grads[0], 0, sizeof(float) * rows * apart(1));
            for (long r = 0; r < rows; r++) {
                float error = *outputs_of(critic, &w, r) - targets[start + r];
                total += (double)error * error;
                *output_grads_of(critic, &w, r) = error * scale;
            }
            backward_block(critic, &w, rows, 1, 0);
        }
        write_gradients(critic, &w);
    }
    *loss += (float)(total / (double)n_all);
}

/* Write the gradients of the actor, up the critic's slope, on a part of a minibatch of n_all rows, and add minus the values to
 * *loss. memory: of both. */
void actor_gradients(const net *actor, const net *critic, const float *obs, int64_t ld, int64_t n_rows, int64_t n_all,
                     float *loss, float *memory) {
    workspace a, c;
    const long dim = actor->widths[actor->n_layers], obs_dim = actor->widths[0];
    double total = 0.0;
    memory = lay_out(actor, &a, memory, 1);
    lay_out(critic, &c, memory, 1);
    prepare(actor, &a, 1);
    prepare(critic, &c, 1);
    for (long start = 0; start < n_rows; start += ROWS) {
        long rows = n_rows - start < ROWS ? n_rows - start : ROWS;
        fetch_inputs(actor, &a, obs + start * ld, ld, rows);
        forward_block(actor, &a, rows);
        join(critic, &c, obs + start * ld, ld, obs_dim, outputs_of(actor, &a, 0), apart(dim), dim, rows);
        forward_block(critic, &c, rows);
        memset(c.grads[0], 0, sizeof(float) * rows * apart(1));
        for (long r = 0; r < rows; r++) {
            total -= *outputs_of(critic, &c, r);
            *output_grads_of(critic, &c, r) = -1.0f / (float)n_all;
        }
        const float *below = backward_block(critic, &c, rows, 0, 1);
        memset(a.grads[0], 0, sizeof(float) * rows * apart(dim));
        for (long r = 0; r < rows; r++)
            memcpy(output_grads_of(actor, &a, r), below + r * apart(obs_dim + dim) + obs_dim, sizeof(float) * dim);
        backward_block(actor, &a, rows, 1, 0);
    }
    write_gradients(actor, &a);
    *loss += (float)(total / (double)n_all);
}
