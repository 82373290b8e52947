/* What DQN does with its networks in an update. The plain path is dqn/fast_policy.py. */
#include "mlp.h"

/* The greatest, and where it is; NaN counts as that */
static long best_of(const float *q, long n) {
    long best = 0;
    for (long j = 1; j < n; j++)
        if (!(q[j] <= q[best]) && q[best] == q[best]) best = j;
    return best;
}

/* Write (n_rows,), what the target network thinks of next observations, whose rows are ld apart: for its best action, or, if
 * there is one, that of the online network. memory: of both. */
void q_values(const net *target, const net *online, const float *obs, int64_t ld, int64_t n_rows, float *values, float *memory) {
    workspace w, other;
    memory = lay_out(target, &w, memory, 0);
    prepare(target, &w, 0);
    if (online) {
        lay_out(online, &other, memory, 0);
        prepare(online, &other, 0);
    }
    const long n_actions = target->widths[target->n_layers];
    for (long start = 0; start < n_rows; start += ROWS) {
        long rows = n_rows - start < ROWS ? n_rows - start : ROWS;
        fetch_inputs(target, &w, obs + start * ld, ld, rows);
        forward_block(target, &w, rows);
        if (online) {
            fetch_inputs(online, &other, obs + start * ld, ld, rows);
            forward_block(online, &other, rows);
        }
        for (long r = 0; r < rows; r++) {
            const float *q = outputs_of(target, &w, r);
            values[start + r] = q[best_of(online ? outputs_of(online, &other, r) : q, n_actions)];
        }
    }
}

/* Write the gradients of the Huber loss on a part of a minibatch of n_all rows, and add the loss to *loss.
 * Returns 0, or -1 where there is no such action, and then writes nothing. */
int64_t q_gradients(const net *online, const float *obs, int64_t ld, const int64_t *actions, const float *targets, int64_t n_rows,
                 int64_t n_all, float *loss, float *memory) {
    workspace w;
    lay_out(online, &w, memory, 1);
    prepare(online, &w, 1);
    const long n_actions = online->widths[online->n_layers];
    const float scale = 1.0f / (float)n_all;
    double total = 0.0;
    for (long start = 0; start < n_rows; start += ROWS) {
        long rows = n_rows - start < ROWS ? n_rows - start : ROWS;
        fetch_inputs(online, &w, obs + start * ld, ld, rows);
        forward_block(online, &w, rows);
        memset(w.grads[0], 0, sizeof(float) * rows * apart(n_actions));
        for (long r = 0; r < rows; r++) {
            long action = actions[start + r];
            if (action < 0 || action >= n_actions) return -1;
            float error = outputs_of(online, &w, r)[action] - targets[start + r], size = fabsf(error);
            total += size < 1.0f ? 0.5f * error * error : size - 0.5f;
            error = error > 1.0f ? 1.0f : error < -1.0f ? -1.0f : error;
            output_grads_of(online, &w, r)[action] = error * scale;
        }
        backward_block(online, &w, rows, 1, 0);
    }
    write_gradients(online, &w);
    *loss += (float)(total / (double)n_all);
    return 0;
}
